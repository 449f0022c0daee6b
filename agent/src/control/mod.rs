//! The unix socket behind `sidestep logs` and `sidestep status`.
