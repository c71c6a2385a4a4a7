//! The network on a host of its own: each test is a thread in a fresh network namespace, which is
//! the host, and makes further namespaces for instances and for the world outside. Needs root.

mod drop_policy;
mod lifecycle;
mod measure;
mod traffic;
mod world;
