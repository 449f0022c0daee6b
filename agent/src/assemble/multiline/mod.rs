//! Joins the lines of a stack trace, or of any record that own rules describe.
//!
//! [`rules`] says whether a line begins a trace and whether the next one goes on with it; one file per language knows
//! its shapes. [`joiner`] holds the lines of the trace under way, within limits.

mod dotnet;
mod expression;
mod go;
mod java;
mod joiner;
mod node;
mod python;
mod ruby;
mod rules;
#[cfg(test)]
mod tests;
mod text;

pub(super) use self::{
    joiner::{Joiner, UnderWay},
    rules::{Limits, Rules},
};
pub use expression::Budget;
pub use rules::Language;
pub(crate) use rules::declared_problem;
