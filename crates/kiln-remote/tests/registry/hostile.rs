//! Registries that lie, hang, cut off, lead in circles and never end.
