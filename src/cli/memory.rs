//! How much memory a program keeps that it does not use.

/// For a program that stays in the background: memory that is free again is used again by all threads.
///
/// The allocator of glibc has an arena for each thread that has had to wait for another one, and does
/// not give back what is free in the middle of each: after the first look at a large folder that is
/// most of the memory of the agent. Call this before there are threads.
pub(super) fn share_between_threads() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// `malloc.h` of glibc: mallopt(3).
        const M_ARENA_MAX: i32 = -8;
        #[allow(unsafe_code)]
        unsafe extern "C" {
            safe fn mallopt(parameter: i32, value: i32) -> i32;
        }
        // If it does not do it, that costs memory and nothing else.
        let _ = mallopt(M_ARENA_MAX, 1);
    }
}
