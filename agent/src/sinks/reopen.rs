//! A sink that could not be started again: it is tried whenever there is something to do, and its queue waits meanwhile.

use std::{collections::VecDeque, time::Duration};

use super::{Delivery, Figure, Sink, SinkError, SinkSettings};

/// Stands in for the sink of a configuration until that can be had.
pub(super) struct Reopen {
    settings: SinkSettings,
    sink: Option<Box<dyn Sink>>,
}

impl Reopen {
    pub(super) const fn new(settings: SinkSettings) -> Self {
        Self { settings, sink: None }
    }

    fn sink(&mut self) -> Result<&mut Box<dyn Sink>, SinkError> {
        match &mut self.sink {
            Some(sink) => Ok(sink),
            none => Ok(none.insert(self.settings.build()?)),
        }
    }
}

impl Sink for Reopen {
    fn name(&self) -> &str {
        self.settings.name()
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

    fn close(&mut self, limit: Duration) -> Result<(), SinkError> {
        self.sink.as_mut().map_or(Ok(()), |sink| sink.close(limit))
    }

    fn give_back(&mut self) -> VecDeque<Delivery> {
        self.sink.as_mut().map_or_else(VecDeque::new, |sink| sink.give_back())
    }
}
