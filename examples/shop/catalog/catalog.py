"""The catalogue: what the shop sells, and how often each piece was chosen.

GET  /products             all products as JSON, with their counts
POST /products/ID/chosen   counts one, answers as above
GET  /up                   "ok" when this service can answer

Products are part of the image. Counts live in Redis, where the whole answer is cached too. Redis
is a convenience here: without it the catalogue is served, only without counts.
"""

import json
import os
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import redis

PORT = 8000
PRODUCTS = json.loads((Path(__file__).parent / "products.json").read_text())
IDS = {product["id"] for product in PRODUCTS}
CHOSEN = re.compile(r"/products/([a-z0-9-]{1,40})/chosen")
CACHE_KEY, COUNTS_KEY = "catalog:answer", "catalog:chosen"
CACHE_SECONDS = int(os.environ.get("CACHE_SECONDS", "5"))

store = redis.Redis.from_url(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
    socket_connect_timeout=1,
    socket_timeout=1,
    decode_responses=True,
)


def render(counts):
    """All products as JSON text, each with its count."""
    with_counts = [{**product, "chosen": int(counts.get(product["id"], 0))} for product in PRODUCTS]
    return json.dumps(with_counts)


def products():
    """The catalogue's answer, from the cache if that has it."""
    try:
        cached = store.get(CACHE_KEY)
        if cached is None:
            cached = render(store.hgetall(COUNTS_KEY))
            store.set(CACHE_KEY, cached, ex=CACHE_SECONDS)
        return cached
    except redis.RedisError as error:
        print(f"catalog: no counts, redis: {error}", file=sys.stderr)
        return render({})


def count(product_id):
    """Counts one choice and drops the cached answer."""
    with store.pipeline() as pipe:
        pipe.hincrby(COUNTS_KEY, product_id, 1)
        pipe.delete(CACHE_KEY)
        pipe.execute()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self):
        if self.path == "/products":
            self.answer(200, products())
        elif self.path == "/up":
            self.answer(200, "ok\n", "text/plain")
        else:
            self.answer(404, "no such page\n", "text/plain")

    def do_POST(self):
        chosen = CHOSEN.fullmatch(self.path)
        # The body means nothing here, and an unread one would be taken for the next request.
        self.close_connection = True
        if not chosen or chosen[1] not in IDS:
            self.answer(404, "no such product\n", "text/plain")
            return
        try:
            count(chosen[1])
        except redis.RedisError as error:
            self.answer(503, f"redis: {error}\n", "text/plain")
            return
        self.answer(200, products())

    def answer(self, status, text, kind="application/json"):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code="-", size="-"):
        if self.path != "/up":
            super().log_request(code, size)


class Server(ThreadingHTTPServer):
    """Finishes the answers that are under way before it ends."""

    daemon_threads = False
    request_queue_size = 128


def main():
    server = Server(("0.0.0.0", PORT), Handler)

    def stop(signum, _frame):
        # shutdown() waits for the loop that this very thread runs, so another one has to ask.
        threading.Thread(target=server.shutdown).start()

    # The first process of a container has no default reaction to signals.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"catalog: {len(PRODUCTS)} products on port {PORT}")
    server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
