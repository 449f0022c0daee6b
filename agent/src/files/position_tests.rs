//! A simulated file, its writers and a ring that loses records: the output must be the file's content.

use proptest::prelude::*;

use super::*;

/// A write system call between its end and its probe, which reads the file position late.
struct InFlight {
    thread: usize,
    bytes: Vec<u8>,
}

/// One incarnation of a file and what the state machine made of it.
struct Simulation {
    file: Vec<u8>,
    /// Position of each open file description; a thread uses description `thread % descriptions`.
    offsets: Vec<u64>,
    append: bool,
    in_flight: Vec<InFlight>,
    place: Place,
    output: Vec<u8>,
    taken: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Write { thread: usize, len: usize },
    Exit { index: usize, lost: bool },
    Read { limit: usize },
    Poll,
}

impl Simulation {
    fn new(descriptions: usize, append: bool) -> Self {
        Self {
            file: Vec::new(),
            offsets: vec![0; descriptions],
            append,
            in_flight: Vec::new(),
            place: Place::new(0),
            output: Vec::new(),
            taken: 0,
        }
    }

    fn write(&mut self, thread: usize, len: usize, counter: &mut u32) {
        // A thread makes one call at a time.
        if self.in_flight.iter().any(|call| call.thread == thread) {
            return;
        }
        let bytes: Vec<u8> = (0..len)
            .map(|_| {
                *counter += 1;
                // Never NUL, and never the same within a short distance.
                (*counter % 251) as u8 + 1
            })
            .collect();
        let description = thread % self.offsets.len();
        if self.append {
            self.offsets[description] = self.file.len() as u64;
        }
        let start = usize::try_from(self.offsets[description]).expect("small");
        if self.file.len() < start + len {
            self.file.resize(start + len, 0);
        }
        self.file[start..start + len].copy_from_slice(&bytes);
        self.offsets[description] += len as u64;
        self.in_flight.push(InFlight { thread, bytes });
    }

    fn exit(&mut self, index: usize, lost: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let call = self.in_flight.remove(index % self.in_flight.len());
        if lost {
            return;
        }
        let description = call.thread % self.offsets.len();
        let record = Record {
            position: self.offsets[description].saturating_sub(call.bytes.len() as u64),
            len: call.bytes.len() as u64,
            append: self.append,
            positioned: false,
            tid: call.thread as u32 + 100,
            description: description as u64 + 1,
        };
        let mut action = self.place.judge(&record);
        if action == Action::Suspect {
            assert!(self.file.len() as u64 >= self.place.next());
            action = self.place.accept_late(&record);
        }
        match action {
            Action::Take => {
                assert_eq!(record.position, self.output.len() as u64);
                self.output.extend(&call.bytes);
                self.taken += 1;
            }
            Action::Read | Action::Skip => {}
            other => panic!("{other:?} without a truncation"),
        }
    }

    fn read(&mut self, limit: usize) {
        let from = usize::try_from(self.place.next()).expect("small");
        let to = usize::try_from(self.place.wanted()).expect("small").min(from + limit);
        assert!(to <= self.file.len(), "records never reach behind the file's end");
        self.output.extend(&self.file[from..to]);
        self.place.advance(to as u64);
    }

    fn check(&self) {
        assert_eq!(self.output.len() as u64, self.place.next());
        assert_eq!(self.output, self.file[..self.output.len()]);
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5_usize, 1..20_usize).prop_map(|(thread, len)| Step::Write { thread, len }),
        6 => (any::<usize>(), prop::bool::weighted(0.2)).prop_map(|(index, lost)| Step::Exit { index, lost }),
        3 => (1..60_usize).prop_map(|limit| Step::Read { limit }),
        1 => Just(Step::Poll),
    ]
}

fn run(steps: &[Step], descriptions: usize, append: bool) -> Simulation {
    let mut simulation = Simulation::new(descriptions, append);
    let mut counter = 0;
    for step in steps {
        match step {
            Step::Write { thread, len } => simulation.write(*thread, *len, &mut counter),
            Step::Exit { index, lost } => simulation.exit(*index, *lost),
            Step::Read { limit } => simulation.read(*limit),
            Step::Poll => simulation.place.want_size(simulation.file.len() as u64),
        }
        simulation.check();
    }
    simulation.place.want_size(simulation.file.len() as u64);
    simulation.read(usize::MAX / 2);
    assert_eq!(simulation.output, simulation.file);
    simulation
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_output_is_the_file_with_shared_descriptions(
        steps in prop::collection::vec(step(), 1..200), append: bool,
    ) {
        // Without O_APPEND two descriptions would overwrite each other, which no log does.
        run(&steps, 1, append);
    }

    #[test]
    fn the_output_is_the_file_with_several_appending_descriptions(
        steps in prop::collection::vec(step(), 1..200), descriptions in 2..5_usize,
    ) {
        run(&steps, descriptions, true);
    }
}

fn record(position: u64, len: u64, tid: u32, description: u64) -> Record {
    Record { position, len, append: true, positioned: false, tid, description }
}

#[test]
fn a_single_writer_is_taken_without_reading() {
    let steps: Vec<_> =
        (0..50).flat_map(|_| [Step::Write { thread: 0, len: 7 }, Step::Exit { index: 0, lost: false }]).collect();
    assert_eq!(run(&steps, 1, false).taken, 50);
    assert_eq!(run(&steps, 1, true).taken, 50);
}

#[test]
fn after_a_lost_record_the_ring_is_taken_again() {
    let mut place = Place::new(0);
    assert_eq!(place.judge(&record(0, 10, 1, 1)), Action::Take);
    assert_eq!(place.judge(&record(30, 10, 1, 1)), Action::Read);
    assert_eq!((place.next(), place.wanted()), (10, 40));
    assert_eq!(place.judge(&record(40, 10, 1, 1)), Action::Read, "what comes before it is not read yet");
    place.advance(50);
    assert_eq!(place.judge(&record(50, 10, 1, 1)), Action::Take);
}

#[test]
fn a_read_beyond_the_last_record_is_verified_by_reading() {
    let mut place = Place::new(0);
    assert_eq!(place.judge(&record(0, 10, 1, 1)), Action::Take);
    place.want_size(25);
    place.advance(25);
    assert_eq!(place.judge(&record(10, 15, 1, 1)), Action::Suspect);
    assert_eq!(place.accept_late(&record(10, 15, 1, 1)), Action::Skip);
    assert_eq!(place.judge(&record(25, 5, 1, 1)), Action::Read, "it may have another place");
    place.advance(30);
    assert_eq!(place.judge(&record(30, 5, 1, 1)), Action::Take);
}

#[test]
fn a_second_thread_ends_the_trust_for_ever() {
    let mut place = Place::new(0);
    assert_eq!(place.judge(&record(0, 10, 1, 1)), Action::Take);
    assert_eq!(place.judge(&record(10, 10, 2, 1)), Action::Read);
    place.advance(20);
    assert_eq!(place.judge(&record(20, 10, 2, 1)), Action::Read);
    place.advance(30);
    assert_eq!(place.judge(&record(30, 10, 3, 7)), Action::Read, "another description has a writer of its own");
    place.advance(40);
    assert_eq!(place.judge(&record(40, 10, 3, 7)), Action::Take);
    assert_eq!(place.judge(&record(50, 10, 1, 1)), Action::Read);
}

#[test]
fn a_writer_that_goes_back_has_truncated() {
    let mut place = Place::new(0);
    assert_eq!(place.judge(&record(0, 10, 1, 1)), Action::Take);
    assert_eq!(place.judge(&record(0, 5, 1, 1)), Action::Restarted);
    place.restart();
    assert_eq!(place.judge(&record(0, 5, 1, 1)), Action::Take);
    assert_eq!(place.judge(&record(0, 5, 2, 2)), Action::Suspect, "another one may just be late");
}

#[test]
fn positioned_writes_are_exact_unless_the_file_appends() {
    let mut place = Place::new(0);
    let positioned = |position, append| Record { positioned: true, append, ..record(position, 10, 1, 1) };
    assert_eq!(place.judge(&positioned(0, false)), Action::Take);
    assert_eq!(place.judge(&positioned(20, false)), Action::Read);
    place.advance(30);
    assert_eq!(place.judge(&positioned(10, false)), Action::Skip);
    assert_eq!(place.judge(&positioned(30, false)), Action::Take);
    assert_eq!(place.judge(&positioned(40, true)), Action::Look);
}

#[test]
fn many_writers_are_not_told_apart_and_not_trusted() {
    let mut place = Place::new(0);
    for writer in 0..20 {
        place.judge(&record(writer * 10, 10, writer as u32, writer));
        place.advance(place.wanted());
    }
    assert_eq!(place.judge(&record(200, 10, 19, 19)), Action::Read);
    assert!(place.writers.len() <= MAX_WRITERS);
}
