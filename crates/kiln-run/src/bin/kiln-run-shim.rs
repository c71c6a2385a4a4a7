//! A binary that has nothing but the hidden roles: what the crate's own tests start.

fn main() {
    kiln_run::dispatch(std::env::args_os());
    eprintln!("kiln-run-shim: this program only has the hidden roles of the runtime");
    std::process::exit(2);
}
