//! Harness of the end-to-end tests: containers, the agent, deadlines.
