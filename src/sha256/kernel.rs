//! The instructions. All `unsafe` code of the project is in this file.
//!
//! What makes it unsafe is one thing only: functions compiled for instructions that the processor
//! may not have. A [`Kernel`] that uses them is made by [`Kernel::detect`] after it has looked, and in
//! no other way. Memory is read and written through references and unaligned loads of whole arrays.
#![allow(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]
// The lanes' arrays go in step: one index for all of them.
#![allow(clippy::needless_range_loop)]

use super::{BLOCK_BYTES, State};

/// Round constants (FIPS 180-4, 4.2.2).
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

type Block = [u8; BLOCK_BYTES];

/// A way to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel(Way);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Portable,
    #[cfg(target_arch = "x86_64")]
    ShaNi,
    #[cfg(target_arch = "aarch64")]
    Sha2,
}

impl Kernel {
    /// The `sha2` crate, one message after another.
    pub const PORTABLE: Self = Self(Way::Portable);

    /// Instructions of this processor, if it has some.
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1")
        {
            return Some(Self(Way::ShaNi));
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("sha2") {
            return Some(Self(Way::Sha2));
        }
        None
    }

    /// Takes blocks into states, as many into each.
    pub fn compress<const N: usize>(self, states: [&mut State; N], blocks: [&[Block]; N]) {
        match self.0 {
            Way::Portable => {
                for (state, blocks) in states.into_iter().zip(blocks) {
                    sha2::block_api::compress256(state, blocks);
                }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this kernel is only made where the processor has been seen to have these
            // instructions.
            Way::ShaNi => unsafe { x86::compress(states, blocks) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: this kernel is only made where the processor has been seen to have these
            // instructions.
            Way::Sha2 => unsafe { aarch64::compress(states, blocks) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi64x,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128,
    };

    use super::{Block, K, State};

    #[inline]
    #[target_feature(enable = "sse2")]
    fn load(bytes: &[u8; 16]) -> __m128i {
        // SAFETY: 16 bytes can be read from an array of 16, and the load needs no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn load_words(words: &[u32; 4]) -> __m128i {
        // SAFETY: 16 bytes can be read from four words, and the load needs no alignment.
        unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn store_words(words: &mut [u32; 4], value: __m128i) {
        // SAFETY: 16 bytes can be written to four words, and the store needs no alignment.
        unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), value) }
    }

    /// The instructions want the words of a state in the order ABEF and CDGH.
    #[inline]
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn split(state: &State) -> (__m128i, __m128i) {
        let (words, _) = state.as_chunks();
        let dcba = _mm_shuffle_epi32(load_words(&words[0]), 0xb1);
        let efgh = _mm_shuffle_epi32(load_words(&words[1]), 0x1b);
        (_mm_alignr_epi8(dcba, efgh, 8), _mm_blend_epi16(efgh, dcba, 0xf0))
    }

    #[inline]
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn join(abef: __m128i, cdgh: __m128i, state: &mut State) {
        let feba = _mm_shuffle_epi32(abef, 0x1b);
        let dchg = _mm_shuffle_epi32(cdgh, 0xb1);
        let (words, _) = state.as_chunks_mut();
        store_words(&mut words[0], _mm_blend_epi16(feba, dchg, 0xf0));
        store_words(&mut words[1], _mm_alignr_epi8(dchg, feba, 8));
    }

    /// `N` messages in step: each group of four rounds is done for all of them before the next.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    pub(super) fn compress<const N: usize>(states: [&mut State; N], blocks: [&[Block]; N]) {
        let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let (constants, _) = K.as_chunks();
        let zero = _mm_setzero_si128();
        let (mut abef, mut cdgh) = ([zero; N], [zero; N]);
        for lane in 0..N {
            (abef[lane], cdgh[lane]) = split(states[lane]);
        }
        let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
        for number in 0..count {
            let (abef_before, cdgh_before) = (abef, cdgh);
            let mut w = [[zero; 4]; N];
            // Four rounds for each message with the words `w[g % 4]`, which are there already.
            macro_rules! rounds {
                ($g:expr) => {
                    for lane in 0..N {
                        let words = _mm_add_epi32(w[lane][$g % 4], load_words(&constants[$g]));
                        cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], words);
                        let words = _mm_shuffle_epi32(words, 0x0e);
                        abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], words);
                    }
                };
            }
            macro_rules! from_block {
                ($($g:expr),*) => {$(
                    for lane in 0..N {
                        let (quarters, _) = blocks[lane][number].as_chunks();
                        w[lane][$g] = _mm_shuffle_epi8(load(&quarters[$g]), big_endian);
                    }
                    rounds!($g);
                )*};
            }
            macro_rules! scheduled {
                ($($g:expr),*) => {$(
                    for lane in 0..N {
                        let [w0, w1, w2, w3] = [
                            w[lane][$g % 4],
                            w[lane][($g + 1) % 4],
                            w[lane][($g + 2) % 4],
                            w[lane][($g + 3) % 4],
                        ];
                        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
                        w[lane][$g % 4] = _mm_sha256msg2_epu32(sum, w3);
                    }
                    rounds!($g);
                )*};
            }
            from_block!(0, 1, 2, 3);
            scheduled!(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            for lane in 0..N {
                abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
                cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
            }
        }
        for (lane, state) in states.into_iter().enumerate() {
            join(abef[lane], cdgh[lane], state);
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::aarch64::{
        uint32x4_t, vaddq_u32, vdupq_n_u32, vld1q_u8, vld1q_u32, vreinterpretq_u32_u8, vrev32q_u8,
        vsha256h2q_u32, vsha256hq_u32, vsha256su0q_u32, vsha256su1q_u32, vst1q_u32,
    };

    use super::{Block, K, State};

    #[inline]
    #[target_feature(enable = "neon")]
    fn load(bytes: &[u8; 16]) -> uint32x4_t {
        // SAFETY: 16 bytes can be read from an array of 16.
        let bytes = unsafe { vld1q_u8(bytes.as_ptr()) };
        vreinterpretq_u32_u8(vrev32q_u8(bytes))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn load_words(words: &[u32; 4]) -> uint32x4_t {
        // SAFETY: four words can be read from an array of four.
        unsafe { vld1q_u32(words.as_ptr()) }
    }

    /// `N` messages in step: each group of four rounds is done for all of them before the next.
    #[target_feature(enable = "neon,sha2")]
    pub(super) fn compress<const N: usize>(states: [&mut State; N], blocks: [&[Block]; N]) {
        let (constants, _) = K.as_chunks();
        let zero = vdupq_n_u32(0);
        let (mut abcd, mut efgh) = ([zero; N], [zero; N]);
        for lane in 0..N {
            let (words, _) = states[lane].as_chunks();
            (abcd[lane], efgh[lane]) = (load_words(&words[0]), load_words(&words[1]));
        }
        let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
        for number in 0..count {
            let (abcd_before, efgh_before) = (abcd, efgh);
            let mut w = [[zero; 4]; N];
            // Four rounds for each message with the words `w[g % 4]`, which are there already.
            macro_rules! rounds {
                ($g:expr) => {
                    for lane in 0..N {
                        let words = vaddq_u32(w[lane][$g % 4], load_words(&constants[$g]));
                        let before = abcd[lane];
                        abcd[lane] = vsha256hq_u32(before, efgh[lane], words);
                        efgh[lane] = vsha256h2q_u32(efgh[lane], before, words);
                    }
                };
            }
            macro_rules! from_block {
                ($($g:expr),*) => {$(
                    for lane in 0..N {
                        let (quarters, _) = blocks[lane][number].as_chunks();
                        w[lane][$g] = load(&quarters[$g]);
                    }
                    rounds!($g);
                )*};
            }
            macro_rules! scheduled {
                ($($g:expr),*) => {$(
                    for lane in 0..N {
                        let [w0, w1, w2, w3] = [
                            w[lane][$g % 4],
                            w[lane][($g + 1) % 4],
                            w[lane][($g + 2) % 4],
                            w[lane][($g + 3) % 4],
                        ];
                        w[lane][$g % 4] = vsha256su1q_u32(vsha256su0q_u32(w0, w1), w2, w3);
                    }
                    rounds!($g);
                )*};
            }
            from_block!(0, 1, 2, 3);
            scheduled!(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            for lane in 0..N {
                abcd[lane] = vaddq_u32(abcd[lane], abcd_before[lane]);
                efgh[lane] = vaddq_u32(efgh[lane], efgh_before[lane]);
            }
        }
        for (lane, state) in states.into_iter().enumerate() {
            let (words, _) = state.as_chunks_mut::<4>();
            // SAFETY: each of the two halves of a state is four words.
            unsafe {
                vst1q_u32(words[0].as_mut_ptr(), abcd[lane]);
                vst1q_u32(words[1].as_mut_ptr(), efgh[lane]);
            }
        }
    }
}
