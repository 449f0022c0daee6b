//! Numbered lines: containers that write them without an end, and what a store holds of them in the end.
//!
//! A line is its number and a body that follows from it, so that whoever finds one knows whether it is whole. Some lines
//! come in two writes.

mod found;
mod load;

pub use found::{Found, Tally, in_kafka, in_opensearch};
pub use load::{Load, Written};

/// The body of the line with this number.
#[must_use]
pub fn body(number: u64) -> String {
    format!("{number:09} {}", "abcdefghij".repeat((number % 23) as usize))
}

/// Bytes of the line with this number, with its end.
#[must_use]
pub const fn length(number: u64) -> u64 {
    9 + 1 + 10 * (number % 23) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_that_of_the_body_and_its_end() {
        for number in 0..50 {
            assert_eq!(length(number), body(number).len() as u64 + 1);
        }
    }
}
