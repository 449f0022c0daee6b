//! One of so many lines, chosen by its place in the stream: a line that is sent again is decided on the same way, by this
//! agent and by the next.

/// Chooses lines of one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampler {
    stream: u64,
    one_of: u64,
}

impl Sampler {
    /// Chooses one of `one_of` lines of the stream with this key.
    pub(super) fn new(key: &str, one_of: u64) -> Self {
        // FNV-1a, which stays the same in every version of the agent.
        let stream = key
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Self { stream, one_of }
    }

    /// Whether the line at `position` is kept.
    pub(super) const fn keeps(self, position: u64) -> bool {
        // The last step of SplitMix64: positions grow by lengths of lines, which have patterns.
        let mut mixed = self.stream.wrapping_add(position).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).is_multiple_of(self.one_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_that_is_kept_is_the_one_asked_for() {
        for (length, one_of) in [(1_u64, 2), (64, 10), (100, 10), (200, 100)] {
            let sampler = Sampler::new("c0ffee/stdout", one_of);
            let kept = (0..100_000).filter(|line| sampler.keeps(line * length)).count() as u64;
            let expected = 100_000 / one_of;
            assert!(kept.abs_diff(expected) < expected / 5, "{kept} of {expected}");
        }
        let every = Sampler::new("c0ffee/stdout", 1);
        assert!((0..1000).all(|position| every.keeps(position)));
    }

    #[test]
    fn a_repeat_is_decided_the_same_way_and_streams_differ() {
        let kept = |key: &str| (0..1000).filter(|position| Sampler::new(key, 4).keeps(*position)).collect::<Vec<_>>();
        assert_eq!(kept("a"), kept("a"));
        assert_ne!(kept("a"), kept("b"));
        // Of the first version: another one would decide differently about lines that come again.
        assert_eq!(kept("c0ffee/stdout")[..4], [3, 5, 7, 9]);
    }
}
