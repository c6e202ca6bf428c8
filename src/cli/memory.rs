//! How much memory a program keeps that it does not use.

/// For a program that stays in the background: memory that is free again is used again by all threads.
///
/// The allocator of glibc has an arena for each thread that has had to wait for another one, and does
/// not give back what is free in the middle of each: after the first look at a large folder that is
/// most of the memory of the agent. Call this before there are threads.
pub(super) fn share_between_threads() {
    set(parameter::ARENA_MAX, 1);
}

/// For a server: what a long request and its answer take is given back when they are done.
///
/// The allocator of glibc maps large pieces by themselves at first, but once one of them has been freed, it puts those
/// into the arenas, too: after a dozen requests of 100,000 files each has its own copies there, and keeps
/// them. Buffers of connections and bodies, up to 128 KiB each, are still kept for the next. Call this before there
/// are threads.
pub(super) fn give_back_what_is_large() {
    set(parameter::MMAP_THRESHOLD, 1 << 20);
    // To set one is to have the other no longer follow it: then each buffer that is freed would be given back.
    set(parameter::TRIM_THRESHOLD, 32 << 20);
}

/// `malloc.h` of glibc: mallopt(3).
mod parameter {
    pub const TRIM_THRESHOLD: i32 = -1;
    pub const MMAP_THRESHOLD: i32 = -3;
    pub const ARENA_MAX: i32 = -8;
}

/// Sets a parameter of the allocator, if it is that of glibc. If it does not do it, that costs memory and nothing else.
fn set(parameter: i32, value: i32) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[allow(unsafe_code)]
        unsafe extern "C" {
            safe fn mallopt(parameter: i32, value: i32) -> i32;
        }
        let _ = mallopt(parameter, value);
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = (parameter, value);
}
