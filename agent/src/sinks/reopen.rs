//! A sink that could not be started: it is tried whenever there is something to do, and about once a second, and its
//! queue waits meanwhile.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Delivery, Figure, Sink, SinkError};

/// Makes a sink, or says why it can't be had yet.
type Build = dyn Fn() -> Result<Box<dyn Sink>, SinkError> + Send;

/// Stands in for a sink until that can be had.
pub(super) struct Reopen {
    name: String,
    build: Box<Build>,
    sink: Option<Box<dyn Sink>>,
}

impl Reopen {
    /// Stands in for the sink of this name, which `build` makes.
    pub(super) fn new(name: &str, build: impl Fn() -> Result<Box<dyn Sink>, SinkError> + Send + 'static) -> Self {
        Self { name: name.to_owned(), build: Box::new(build), sink: None }
    }

    fn sink(&mut self) -> Result<&mut Box<dyn Sink>, SinkError> {
        match &mut self.sink {
            Some(sink) => Ok(sink),
            none => Ok(none.insert((self.build)()?)),
        }
    }
}

impl Sink for Reopen {
    fn name(&self) -> &str {
        &self.name
    }

    fn write(&mut self, queue: &mut VecDeque<Delivery>) -> Result<(), SinkError> {
        self.sink()?.write(queue)
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.sink.as_mut().map_or(Ok(()), |sink| sink.flush())
    }

    fn tick(&mut self) -> Result<(), SinkError> {
        self.sink()?.tick()
    }

    fn figures(&self) -> Vec<Figure> {
        self.sink.as_ref().map_or_else(Vec::new, |sink| sink.figures())
    }

    fn next_call(&self) -> Option<Instant> {
        self.sink.as_ref().and_then(|sink| sink.next_call())
    }

    fn call(&mut self) -> Result<(), SinkError> {
        self.sink()?.call()
    }

    fn close(&mut self, limit: Duration) -> Result<(), SinkError> {
        self.sink.as_mut().map_or(Ok(()), |sink| sink.close(limit))
    }

    fn give_back(&mut self) -> VecDeque<Delivery> {
        self.sink.as_mut().map_or_else(VecDeque::new, |sink| sink.give_back())
    }
}
