//! Which of the agents writes the status of policies: the holder of a Lease. It is taken, renewed and released as client-go
//! does it, at the pace that an idle node's budget of requests allows.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::timeout};

/// Its name.
const NAME: &str = "sidestep";
/// For how long it holds after it was renewed.
const HOLDS: Duration = Duration::from_secs(360);
/// How often it is renewed: 12 requests an hour. With the reports of the node these are 18 of the 20 that an idle node may cost.
pub(super) const RENEW: Duration = Duration::from_secs(300);
/// How often the others ask for it.
pub(super) const RETRY: Duration = Duration::from_secs(300);
/// How long the end of an agent may take for it.
const RELEASE: Duration = Duration::from_secs(2);

/// Tells those that hold something in the cluster that the agent ends, and waits until they have let go of it.
#[derive(Debug)]
pub(super) struct End(watch::Sender<bool>);

/// The other side of [`End`]: who has it is waited for.
#[derive(Debug)]
pub(super) struct Ending(watch::Receiver<bool>);

impl Default for End {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl End {
    /// One more that is waited for.
    pub(super) fn subscribe(&self) -> Ending {
        Ending(self.0.subscribe())
    }

    /// The agent ends. Returns when all have let go, or after a time that no API server can make longer.
    pub(super) async fn begin(&self) {
        self.0.send_replace(true);
        if timeout(RELEASE, self.0.closed()).await.is_err() {
            tracing::debug!(
                "not all is let go of in time: another agent waits until the Lease of the policies' status ends"
            );
        }
    }
}

impl Ending {
    /// Waits until the agent ends.
    pub(super) async fn begun(&mut self) {
        // Without anybody who could say so, it never does.
        if self.0.wait_for(|is_over| *is_over).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What is known of the Lease.
pub(super) struct Claim {
    leases: Api<Lease>,
    node: String,
    /// As it was written last, while it is this agent's: it is renewed without being read.
    own: Option<Lease>,
    /// When it was renewed last by whom it belongs to, and since when that was seen: by this clock, as those of nodes differ.
    seen: Option<(Option<MicroTime>, Instant)>,
}

impl Claim {
    /// Nothing yet.
    pub(super) fn new(leases: Api<Lease>, node: &str) -> Self {
        Self { leases, node: node.to_owned(), own: None, seen: None }
    }

    /// Takes or renews the Lease; whether this agent holds it.
    pub(super) async fn hold(&mut self) -> bool {
        match self.try_hold().await {
            Ok(own) => self.own = own,
            Err(error) => {
                self.own = None;
                // 409: another one was faster.
                tracing::debug!(%error, "the Lease of the policies' status can't be held");
            }
        }
        self.own.is_some()
    }

    /// The Lease as it is then; `None` when it is another one's.
    async fn try_hold(&mut self) -> kube::Result<Option<Lease>> {
        let found = match &self.own {
            Some(own) => Some(own.clone()),
            None => self.leases.get_opt(NAME).await?,
        };
        let (now, parameters) = (MicroTime(Timestamp::now()), PostParams::default());
        let Some(mut lease) = found else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(held(&self.node, &LeaseSpec::default(), now)) };
            return self.leases.create(&parameters, &lease).await.map(Some);
        };
        let before = lease.spec.take().unwrap_or_default();
        let at = Instant::now();
        let since = unchanged_since(&mut self.seen, before.renew_time.as_ref(), at);
        // An agent that starts anew on the same node goes on with it.
        let is_own = before.holder_identity.as_deref() == Some(&self.node);
        if !is_own && !is_free(&before) && at.saturating_duration_since(since) < HOLDS {
            return Ok(None);
        }
        lease.spec = Some(held(&self.node, &before, now));
        self.leases.replace(NAME, &parameters, &lease).await.map(Some)
    }

    /// Lets go of the Lease, so that the next agent that asks gets it.
    pub(super) async fn release(self) {
        let Some(mut lease) = self.own else { return };
        lease.spec = Some(released(&lease.spec.unwrap_or_default(), MicroTime(Timestamp::now())));
        if let Err(error) = self.leases.replace(NAME, &PostParams::default(), &lease).await {
            tracing::debug!(%error, "the Lease of the policies' status can't be released");
        }
    }
}

/// Since when a Lease stands as it does, that is found to be renewed at `renewed`. That time is its holder's: it is held against
/// nothing but what it was before, and may as well have gone back.
fn unchanged_since(
    seen: &mut Option<(Option<MicroTime>, Instant)>,
    renewed: Option<&MicroTime>,
    now: Instant,
) -> Instant {
    match seen {
        Some((known, since)) if known.as_ref() == renewed => *since,
        _ => seen.insert((renewed.cloned(), now)).1,
    }
}

/// Whether nobody holds it.
fn is_free(spec: &LeaseSpec) -> bool {
    spec.holder_identity.as_deref().is_none_or(str::is_empty)
}

/// The Lease, held by `node` from `now` on, after it was `before`.
fn held(node: &str, before: &LeaseSpec, now: MicroTime) -> LeaseSpec {
    let is_own = before.holder_identity.as_deref() == Some(node);
    // Nobody had it before the first: that is no transition.
    let is_new = before.renew_time.is_none();
    LeaseSpec {
        holder_identity: Some(node.to_owned()),
        lease_duration_seconds: i32::try_from(HOLDS.as_secs()).ok(),
        acquire_time: before.acquire_time.clone().filter(|_| is_own).or_else(|| Some(now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(before.lease_transitions.unwrap_or_default() + i32::from(!is_own && !is_new)),
        ..LeaseSpec::default()
    }
}

/// The Lease, held by nobody, as client-go's `ReleaseOnCancel` leaves it.
fn released(before: &LeaseSpec, now: MicroTime) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        acquire_time: Some(now.clone()),
        renew_time: Some(now),
        lease_transitions: before.lease_transitions,
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::conditions::HEARTBEAT;

    fn at(second: i64) -> MicroTime {
        MicroTime(Timestamp::from_second(second).expect("a time"))
    }

    #[test]
    fn a_lease_is_taken_renewed_released_and_taken_by_the_next() {
        let first = held("a", &LeaseSpec::default(), at(1));
        assert_eq!((first.holder_identity.as_deref(), first.lease_transitions), (Some("a"), Some(0)));
        let renewed = held("a", &first, at(2));
        assert_eq!((&renewed.acquire_time, &renewed.renew_time), (&Some(at(1)), &Some(at(2))));
        assert_eq!(renewed.lease_transitions, Some(0));
        let free = released(&renewed, at(3));
        assert!(is_free(&free) && !is_free(&renewed) && is_free(&LeaseSpec::default()));
        assert_eq!(free.lease_duration_seconds, Some(1), "whoever goes by that waits no longer");
        let next = held("b", &free, at(4));
        assert_eq!((next.holder_identity.as_deref(), next.lease_transitions), (Some("b"), Some(1)));
        assert_eq!(next.acquire_time, Some(at(4)));
    }

    #[test]
    fn a_clock_that_is_set_back_neither_ends_a_lease_nor_keeps_it() {
        let (hour, start) = (3600, Instant::now());
        let mut seen = None;
        let taken = held("a", &LeaseSpec::default(), at(2 * hour));
        assert_eq!(unchanged_since(&mut seen, taken.renew_time.as_ref(), start), start);
        assert_eq!(unchanged_since(&mut seen, taken.renew_time.as_ref(), start + RENEW), start);
        // Its holder's clock goes back by an hour, and it is renewed all the same.
        let renewed = held("a", &taken, at(hour));
        assert_eq!((&renewed.acquire_time, renewed.lease_transitions), (&Some(at(2 * hour)), Some(0)));
        let later = start + RENEW;
        assert_eq!(unchanged_since(&mut seen, renewed.renew_time.as_ref(), later), later);
        // Nobody renews it any more: it ends, though by that clock there is much time left.
        let after = later + HOLDS;
        let since = unchanged_since(&mut seen, renewed.renew_time.as_ref(), after);
        assert!(after.duration_since(since) >= HOLDS);
        let next = held("b", &renewed, at(hour / 2));
        assert_eq!((next.holder_identity.as_deref(), next.lease_transitions), (Some("b"), Some(1)));
        assert_eq!(unchanged_since(&mut seen, next.renew_time.as_ref(), after), after, "it is the next one's now");
    }

    #[tokio::test]
    async fn the_end_waits_for_who_holds_something_and_not_for_ever() {
        let end = End::default();
        end.begin().await;
        let end = End::default();
        let mut ending = end.subscribe();
        let holder = tokio::spawn(async move { ending.begun().await });
        end.begin().await;
        holder.await.expect("it has let go");
        let _stuck = end.subscribe();
        timeout(2 * RELEASE, end.begin()).await.expect("it ends all the same");
    }

    #[test]
    fn an_idle_node_costs_no_more_than_its_budget() {
        let an_hour = Duration::from_hours(1);
        let reports = an_hour.div_duration_f64(HEARTBEAT);
        assert!([RENEW, RETRY].iter().all(|pause| reports + an_hour.div_duration_f64(*pause) <= 20.0));
        assert!(RENEW < HOLDS, "it is renewed before it ends");
    }
}
