"use strict";

// Outlines of the pieces, by shape; anything unknown is a bowl.
const shapes = {
  bowl: "M6 24h52c0 16-10 26-20 28v4H26v-4C16 50 6 40 6 24z",
  mug: "M12 14h32v6h4a10 10 0 0 1 0 22h-4v10H12zM44 26v10h3a5 5 0 0 0 0-10z",
  vase: "M24 6h16v10c0 6 12 12 12 24 0 10-8 18-20 18s-20-8-20-18c0-12 12-18 12-24z",
  plate: "M2 34h60c0 8-14 14-30 14S2 42 2 34z",
};

const byId = (id) => document.getElementById(id);
const names = new Map();

/** Asks the shop; every answer also says which release gave it. */
async function ask(path, options) {
  const response = await fetch(path, options);
  const release = response.headers.get("X-Kiln-Release");
  byId("release").textContent = release ?? "(not served by Kiln)";
  if (!response.ok) {
    throw new Error((await response.text()).trim() || response.statusText);
  }
  return response.json();
}

function showCatalogue(products) {
  // Not `elements.item`: that is a method of the collection.
  const select = byId("order").elements.namedItem("item");
  const chosen = select.value;
  const cards = products.map((product) => {
    names.set(product.id, product.name);
    const card = byId("card").content.cloneNode(true);
    card.querySelector("path").setAttribute("d", shapes[product.shape] ?? shapes.bowl);
    card.querySelector("h3").textContent = product.name;
    card.querySelector(".text").textContent = product.text;
    card.querySelector("strong").textContent = `${(product.price_cents / 100).toFixed(2)} €`;
    card.querySelector("small").textContent = product.chosen ? `chosen ${product.chosen}×` : "";
    card.querySelector("button").addEventListener("click", () => choose(product.id));
    return card;
  });
  byId("catalogue").replaceChildren(...cards);
  select.replaceChildren(...products.map((product) => new Option(product.name, product.id)));
  if (names.has(chosen)) select.value = chosen;
}

async function choose(id) {
  const form = byId("order").elements;
  form.namedItem("item").value = id;
  form.customer.focus();
  try {
    showCatalogue(await ask(`/api/products/${encodeURIComponent(id)}/chosen`, { method: "POST" }));
  } catch {
    // Counting is a nicety: the order form works without it.
  }
}

function showOrders(orders) {
  byId("orders").replaceChildren(...orders.map((order) => {
    const row = document.createElement("tr");
    const item = names.get(order.item) ?? order.item;
    for (const text of [order.id, order.customer, item, order.quantity, order.state]) {
      row.append(Object.assign(document.createElement("td"), { textContent: text }));
    }
    row.lastChild.className = order.state;
    return row;
  }));
}

async function refresh() {
  try {
    showOrders(await ask("/api/orders"));
  } catch (error) {
    say(`orders: ${error.message}`, true);
  }
}

function say(text, bad = false) {
  byId("answer").textContent = text;
  byId("answer").classList.toggle("bad", bad);
}

byId("order").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const body = new URLSearchParams(new FormData(event.target));
    const order = await ask("/api/orders", { method: "POST", body });
    say(`Order ${order.id} is placed. Thank you.`);
    await refresh();
  } catch (error) {
    say(error.message, true);
  }
});

async function start() {
  try {
    showCatalogue(await ask("/api/products"));
  } catch (error) {
    say(`catalogue: ${error.message}`, true);
  }
  await refresh();
  setInterval(refresh, 2000);
}

start();
