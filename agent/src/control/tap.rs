//! A live tap of the pipeline's batches. It never blocks: a client that reads too slowly loses lines and is told how many.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::Notify;

use super::filter::Matcher;
use crate::{pipeline::outlet::Watch, record::Batch};

/// The default size of the history.
pub const HISTORY_BYTES: usize = 4 << 20;

/// What may wait for one client.
const QUEUE_BYTES: usize = 4 << 20;

/// Where the pipeline shows its batches, and clients of the control socket look at them.
#[derive(Debug)]
pub struct Tap {
    history_limit: usize,
    /// Number of followers, so that nothing is locked when there is neither a history nor a follower.
    following: AtomicUsize,
    /// Held for one push by the pipeline, and by a new client while it copies the references of the history.
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Batches with their sizes: an old batch is no longer in the processor's caches, so it is not measured again.
    history: VecDeque<(usize, Arc<Batch>)>,
    /// The streams of these, by their addresses: how many batches each has, and its size. A stream that has ended is kept by
    /// its last lines alone, with all that is known of its container, which is more than most lines are.
    streams: HashMap<usize, (usize, usize)>,
    /// Of batches and streams.
    history_bytes: usize,
    followers: Vec<Arc<Follower>>,
}

#[derive(Debug)]
struct Follower {
    matcher: Arc<Matcher>,
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    lost_lines: u64,
}

/// What a follower gets at once.
#[derive(Debug, Default)]
pub struct Taken {
    /// Batches of streams that match, in order.
    pub batches: VecDeque<Arc<Batch>>,
    /// Lines of matching streams that came after these batches and found no room.
    pub lost_lines: u64,
}

impl Default for Tap {
    fn default() -> Self {
        Self::new(HISTORY_BYTES)
    }
}

impl Tap {
    /// A tap that remembers the last `history_limit` bytes of batches; 0 for none.
    ///
    /// The history keeps batches alive: a batch whose `data` is a part of a larger buffer holds all of that.
    #[must_use]
    pub fn new(history_limit: usize) -> Self {
        Self { history_limit, following: AtomicUsize::new(0), shared: Mutex::default() }
    }

    /// Clients that follow now.
    #[must_use]
    pub fn followers(&self) -> usize {
        self.following.load(Relaxed)
    }

    /// The remembered batches of streams that match, oldest first.
    #[must_use]
    pub fn history(&self, matcher: &Matcher) -> VecDeque<Arc<Batch>> {
        matching(&lock(&self.shared).history, matcher)
    }

    /// Starts to follow. The history and what comes later join without a gap or a repeat.
    #[must_use]
    pub fn follow(self: &Arc<Self>, matcher: Arc<Matcher>) -> (VecDeque<Arc<Batch>>, Subscription) {
        let mut shared = lock(&self.shared);
        let history = matching(&shared.history, &matcher);
        let follower = Arc::new(Follower { matcher, queue: Mutex::default(), wake: Notify::new() });
        shared.followers.push(Arc::clone(&follower));
        self.following.store(shared.followers.len(), Relaxed);
        (history, Subscription { tap: Arc::clone(self), follower })
    }
}

impl Watch for Tap {
    /// Costs a lock and a push while nobody follows.
    fn watch(&self, batch: &Arc<Batch>) {
        if self.history_limit == 0 && self.following.load(Relaxed) == 0 {
            return;
        }
        let size = size_of::<Batch>() + batch.memory();
        let mut shared = lock(&self.shared);
        for follower in &shared.followers {
            follower.offer(batch, size);
        }
        // A batch larger than the whole history would only push out everything else.
        if size > self.history_limit {
            return;
        }
        shared.remember(batch, size);
        while shared.history_bytes > self.history_limit && shared.forget_oldest() {}
    }
}

impl Shared {
    fn remember(&mut self, batch: &Arc<Batch>, size: usize) {
        let (batches, stream) = self.streams.entry(address(batch)).or_insert_with(|| (0, batch.stream.memory()));
        if *batches == 0 {
            self.history_bytes += *stream;
        }
        *batches += 1;
        self.history_bytes += size;
        self.history.push_back((size, Arc::clone(batch)));
    }

    /// `false` when there is none.
    fn forget_oldest(&mut self) -> bool {
        let Some((size, batch)) = self.history.pop_front() else { return false };
        self.history_bytes -= size;
        if let Entry::Occupied(mut stream) = self.streams.entry(address(&batch)) {
            stream.get_mut().0 -= 1;
            if stream.get().0 == 0 {
                self.history_bytes -= stream.remove().1;
            }
        }
        true
    }
}

/// Names a stream for as long as a batch of it is kept.
fn address(batch: &Batch) -> usize {
    Arc::as_ptr(&batch.stream).addr()
}

/// One client that follows; it stops when this is dropped.
#[derive(Debug)]
pub struct Subscription {
    tap: Arc<Tap>,
    follower: Arc<Follower>,
}

impl Subscription {
    /// Waits until there is something, and takes all of it.
    pub async fn next(&self) -> Taken {
        loop {
            {
                let mut queue = lock(&self.follower.queue);
                if !queue.batches.is_empty() || queue.lost_lines > 0 {
                    let Queue { batches, lost_lines, .. } = mem::take(&mut *queue);
                    return Taken { batches, lost_lines };
                }
            }
            self.follower.wake.notified().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut shared = lock(&self.tap.shared);
        shared.followers.retain(|follower| !Arc::ptr_eq(follower, &self.follower));
        self.tap.following.store(shared.followers.len(), Relaxed);
    }
}

impl Follower {
    fn offer(&self, batch: &Arc<Batch>, size: usize) {
        if !self.matcher.matches_stream(&batch.stream) {
            return;
        }
        let mut queue = lock(&self.queue);
        // Once lines are lost, the client hears of it before it gets anything newer. A single batch always finds room.
        if queue.lost_lines > 0 || (!queue.batches.is_empty() && queue.bytes + size > QUEUE_BYTES) {
            queue.lost_lines += batch.lines.len() as u64;
            return;
        }
        queue.batches.push_back(Arc::clone(batch));
        queue.bytes += size;
        drop(queue);
        self.wake.notify_one();
    }
}

fn matching(history: &VecDeque<(usize, Arc<Batch>)>, matcher: &Matcher) -> VecDeque<Arc<Batch>> {
    let batches = history.iter().map(|(_, batch)| batch);
    batches.filter(|batch| matcher.matches_stream(&batch.stream)).cloned().collect()
}

/// No state is left half-changed by a panic, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{filter::Filter, server::tests::batch};

    fn everything() -> Arc<Matcher> {
        Arc::new(Matcher::new(&Filter::default()).expect("a valid filter"))
    }

    fn bodies(batches: &VecDeque<Arc<Batch>>) -> Vec<String> {
        let body = |batch: &Arc<Batch>| String::from_utf8_lossy(batch.body(&batch.lines[0])).into_owned();
        batches.iter().map(body).collect()
    }

    #[test]
    fn the_history_is_bounded_and_keeps_the_newest() {
        let tap = Tap::new(100_000);
        for number in 0..1000 {
            tap.watch(&batch("web", format!("{number:01000}")));
        }
        let history = tap.history(&everything());
        let bodies = bodies(&history);
        assert!((30..50).contains(&bodies.len()), "each with its stream: {}", bodies.len());
        assert_eq!(bodies.last().expect("not empty"), &format!("{:01000}", 999));
        assert!(lock(&tap.shared).history_bytes <= 100_000);
        // One that does not fit at all pushes nothing out.
        tap.watch(&batch("web", "x".repeat(200_000)));
        assert_eq!(tap.history(&everything()).len(), history.len());
    }

    #[test]
    fn streams_count_once_and_go_with_their_last_batch() {
        let tap = Tap::new(100_000);
        let one = batch("web", "x");
        (0..3).for_each(|_| tap.watch(&one));
        let bytes = size_of::<Batch>() + one.memory();
        assert_eq!(lock(&tap.shared).history_bytes, 3 * bytes + one.stream.memory());
        for number in 0..1000 {
            tap.watch(&batch("web", number.to_string()));
        }
        assert_eq!(Arc::strong_count(&one), 1, "it was pushed out");
        let shared = lock(&tap.shared);
        assert!(shared.history.len() < 100 && shared.streams.len() == shared.history.len());
    }

    #[tokio::test]
    async fn history_and_live_join_without_gap_or_repeat() {
        // Each of the 5000 has a stream of its own.
        let tap = Arc::new(Tap::new(16 << 20));
        let pipeline = std::thread::spawn({
            let tap = Arc::clone(&tap);
            move || (0..5000).for_each(|number| tap.watch(&batch("web", number.to_string())))
        });
        while tap.history(&everything()).len() < 10 {
            std::thread::yield_now();
        }
        let (history, subscription) = tap.follow(everything());
        let mut seen = bodies(&history);
        pipeline.join().expect("no panic");
        while seen.len() < 5000 {
            let taken = subscription.next().await;
            assert_eq!(taken.lost_lines, 0);
            seen.extend(bodies(&taken.batches));
        }
        assert!(seen.iter().enumerate().all(|(number, body)| *body == number.to_string()));
    }

    #[tokio::test]
    async fn a_slow_follower_loses_counted_lines_of_its_own_streams_only() {
        let tap = Arc::new(Tap::new(0));
        let filter = Filter { pods: vec!["web".to_owned()], ..Filter::default() };
        let (_, slow) = tap.follow(Arc::new(Matcher::new(&filter).expect("a valid filter")));
        for _ in 0..100 {
            tap.watch(&batch("web", "x".repeat(100_000)));
            tap.watch(&batch("flood", "x".repeat(100_000)));
        }
        let taken = slow.next().await;
        assert!((30..60).contains(&taken.batches.len()), "{}", taken.batches.len());
        assert_eq!(taken.batches.len() as u64 + taken.lost_lines, 100);
        tap.watch(&batch("web", "again"));
        let taken = slow.next().await;
        assert_eq!((bodies(&taken.batches), taken.lost_lines), (vec!["again".to_owned()], 0));
    }

    #[test]
    fn holds_nothing_when_nobody_follows_and_no_history_is_wanted() {
        let tap = Arc::new(Tap::new(0));
        drop(tap.follow(everything()));
        let one = batch("web", "x");
        tap.watch(&one);
        assert_eq!(Arc::strong_count(&one), 1);
        assert!(lock(&tap.shared).followers.is_empty());
    }
}
