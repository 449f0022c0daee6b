//! Against a server that answers what a test says.
