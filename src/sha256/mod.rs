//! SHA-256 of several messages at once on one core.
//!
//! SHA-256 is a chain: each step waits for the one before, and a core that has instructions for it is
//! idle most of the time. Messages that have nothing to do with each other fill the gaps: four of them
//! take little more than half the time of four one after another. Where a processor has no such
//! instructions, the `sha2` crate does one after another.

mod kernel;

use std::sync::OnceLock;

use kernel::Kernel;

/// The length of a block, in bytes.
pub(crate) const BLOCK_BYTES: usize = 64;

/// The most messages at once.
pub(crate) const MAX_LANES: usize = 4;

/// What a message has come to so far.
pub(crate) type State = [u32; 8];

/// The state before the first block (FIPS 180-4, 5.3.3).
pub(crate) const INITIAL: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The fastest way that this machine has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lanes(Kernel);

impl Lanes {
    /// Looks once what the processor can do, and whether that is right.
    pub fn detect() -> Self {
        static FOUND: OnceLock<Lanes> = OnceLock::new();
        *FOUND.get_or_init(|| {
            // Unoptimised, our kernels are slower by far than the crate, which always is optimised.
            let found = Kernel::detect().filter(|_| !cfg!(debug_assertions)).map(Self);
            found.filter(|lanes| lanes.is_right()).unwrap_or(Self::PORTABLE)
        })
    }

    /// The `sha2` crate.
    const PORTABLE: Self = Self(Kernel::PORTABLE);

    /// Whether it agrees with the crate about a few messages.
    fn is_right(self) -> bool {
        let blocks: Vec<u8> =
            (0..MAX_LANES * 3 * BLOCK_BYTES).map(|i| (i * 7 + i / 64) as u8).collect();
        let messages: Vec<&[u8]> = blocks.chunks(3 * BLOCK_BYTES).collect();
        (1..=MAX_LANES).all(|lanes| {
            let (mut ours, mut theirs) = ([INITIAL; MAX_LANES], [INITIAL; MAX_LANES]);
            self.compress(ours.iter_mut().zip(messages.iter().copied()).take(lanes));
            Self::PORTABLE.compress(theirs.iter_mut().zip(messages.iter().copied()).take(lanes));
            ours == theirs
        })
    }

    /// Takes whole blocks into states: the same number of bytes into each, and at most
    /// [`MAX_LANES`] states.
    pub fn compress<'a>(self, lanes: impl Iterator<Item = (&'a mut State, &'a [u8])>) {
        let mut states: [Option<&mut State>; MAX_LANES] = [const { None }; MAX_LANES];
        let mut blocks: [&[[u8; BLOCK_BYTES]]; MAX_LANES] = [&[]; MAX_LANES];
        let mut count = 0;
        for (state, data) in lanes {
            let (whole, rest) = data.as_chunks();
            assert!(rest.is_empty() && count < MAX_LANES, "BUG: whole blocks of a few messages");
            assert!(whole.len() == blocks[0].len() || count == 0, "BUG: messages go in step");
            (states[count], blocks[count]) = (Some(state), whole);
            count += 1;
        }
        match (states, count) {
            (_, 0) => {}
            // There is nothing to fill the gaps with, and the crate is tuned for this.
            ([Some(a), ..], 1) => Kernel::PORTABLE.compress([a], [blocks[0]]),
            ([Some(a), Some(b), ..], 2) => self.0.compress([a, b], [blocks[0], blocks[1]]),
            ([Some(a), Some(b), Some(c), ..], 3) => {
                self.0.compress([a, b, c], [blocks[0], blocks[1], blocks[2]]);
            }
            ([Some(a), Some(b), Some(c), Some(d)], 4) => self.0.compress([a, b, c, d], blocks),
            _ => unreachable!("BUG: as many states as were counted"),
        }
    }
}

/// The end of a message of this length (FIPS 180-4, 5.1.1): what follows its last whole block of
/// which `rest` bytes are left is to be filled with this. One block or two.
pub(crate) fn padding(message_bytes: u64) -> ([u8; 2 * BLOCK_BYTES], usize) {
    let rest = (message_bytes % BLOCK_BYTES as u64) as usize;
    // One byte of mark, eight of length.
    let total = if rest + 9 <= BLOCK_BYTES { BLOCK_BYTES } else { 2 * BLOCK_BYTES };
    let mut padding = [0; 2 * BLOCK_BYTES];
    padding[0] = 0x80;
    let length = total - rest;
    padding[length - 8..length].copy_from_slice(&message_bytes.wrapping_mul(8).to_be_bytes());
    (padding, length)
}

/// The digest that a state is when the padding has gone in.
pub(crate) fn digest(state: &State) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;

    /// All that can run here.
    fn kernels() -> Vec<Lanes> {
        [Some(Kernel::PORTABLE), Kernel::detect()].into_iter().flatten().map(Lanes).collect()
    }

    /// A message with its padding.
    fn padded(message: &[u8]) -> Vec<u8> {
        let (padding, length) = padding(message.len() as u64);
        [message, &padding[..length]].concat()
    }

    /// The digests of messages that are taken in together, in step, each lane taking the next message
    /// when its own has ended.
    fn digests(lanes: Lanes, messages: &[Vec<u8>], width: usize) -> Vec<[u8; 32]> {
        struct Lane {
            number: usize,
            state: State,
            data: Vec<u8>,
            at: usize,
        }
        let mut done = vec![[0; 32]; messages.len()];
        let mut next = messages.iter().enumerate();
        let mut running: Vec<Lane> = Vec::new();
        loop {
            while running.len() < width
                && let Some((number, message)) = next.next()
            {
                running.push(Lane { number, state: INITIAL, data: padded(message), at: 0 });
            }
            let Some(step) = running.iter().map(|lane| lane.data.len() - lane.at).min() else {
                return done;
            };
            lanes.compress(
                running
                    .iter_mut()
                    .map(|lane| (&mut lane.state, &lane.data[lane.at..lane.at + step])),
            );
            running.retain_mut(|lane| {
                lane.at += step;
                done[lane.number] = digest(&lane.state);
                lane.at < lane.data.len()
            });
        }
    }

    fn expected(messages: &[Vec<u8>]) -> Vec<[u8; 32]> {
        messages.iter().map(|message| Sha256::digest(message).into()).collect()
    }

    #[test]
    fn known_digests() {
        // FIPS 180-4's examples.
        let hex = |bytes: [u8; 32]| bytes.map(|byte| format!("{byte:02x}")).concat();
        for lanes in kernels() {
            for (message, expected) in [
                (&b"abc"[..], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
                (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ] {
                let found = digests(lanes, &[message.to_vec()], 1);
                assert_eq!(hex(found[0]), expected, "{lanes:?}");
            }
        }
    }

    #[test]
    fn lengths_around_the_ends_of_blocks() {
        let lengths =
            [0, 1, 54, 55, 56, 57, 62, 63, 64, 65, 118, 119, 120, 121, 127, 128, 129, 1000];
        let messages: Vec<Vec<u8>> =
            lengths.iter().map(|length| (0..*length).map(|i| (i * 31) as u8).collect()).collect();
        for lanes in kernels() {
            for width in 1..=MAX_LANES {
                assert_eq!(
                    digests(lanes, &messages, width),
                    expected(&messages),
                    "{lanes:?} {width}"
                );
            }
        }
    }

    #[test]
    fn nothing_is_left_out_of_the_length() {
        let (padding, length) = padding(0x0123_4567_89ab_cdef);
        assert_eq!(padding[length - 8..length], (0x0123_4567_89ab_cdef_u64 << 3).to_be_bytes());
    }

    #[test]
    fn what_is_found_is_right() {
        assert!(kernels().iter().all(|lanes| lanes.is_right()));
        // On the machines that tests usually run on, there is something to test.
        #[cfg(target_arch = "x86_64")]
        assert_eq!(Kernel::detect().is_some(), is_x86_feature_detected!("sha"));
    }

    proptest! {
        #[test]
        fn agrees_with_the_crate(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..700), 0..9),
            width in 1..=MAX_LANES,
        ) {
            for lanes in kernels() {
                prop_assert_eq!(digests(lanes, &messages, width), expected(&messages));
            }
        }
    }
}
