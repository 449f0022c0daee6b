//! From bytes to lines. No I/O: time is passed in.
