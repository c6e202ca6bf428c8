//! The system calls of other processes, counted one by one.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    errno::Errno,
    libc::{self, c_long},
    sys::{
        ptrace::{self, Event, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, gettid},
};

use super::{common::*, ledger::Counts};

/// Says that the work is done. It means nothing to the program.
const DONE: Signal = Signal::SIGURG;

/// A process whose system calls all pass through this thread. Only the thread that has made it can use it.
pub struct Traced {
    child: Child,
    leader: Pid,
    /// Calls that have a file handle count only if it is of a file in here: not of a connection, a pipe, or the log.
    inside: PathBuf,
    has_ended: bool,
    counted: BTreeMap<&'static str, f64>,
}

impl Traced {
    /// A server with its store in this directory.
    pub fn server(home: &Path, durability: &str) -> (Self, SocketAddr) {
        let mut child = farmhand(home)
            .args(["serve", "--listen", "127.0.0.1:0", "--storage"])
            .arg(home.join("storage"))
            .env("FARMHAND_STORE_DURABILITY", durability)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let address = url.trim().trim_start_matches("http://").trim_end_matches('/');
        let address = address.parse().unwrap_or_else(|_| panic!("{url:?}"));
        // When it starts it looks through what is there.
        until(|| {
            let metrics = String::from_utf8(Connection::new(address).get("/metrics").body).unwrap();
            let is_indexed = metrics.contains("\nfarmhand_chunk_index_behind 0");
            is_indexed && metrics.contains("\nfarmhand_store_blobs ")
        });
        (Self::seize(child, home), address)
    }

    /// What a command does from its first system call to its last.
    pub fn command(home: &Path, arguments: &[&str]) -> Counts {
        let program = farmhand(home);
        // It waits until it is traced.
        let mut shell = Command::new("sh");
        shell.args(["-c", "read go; exec \"$0\" \"$@\""]).arg(program.get_program());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let said = fs::File::create(home.join("said")).unwrap();
        let mut child = shell
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .unwrap();
        let mut go = child.stdin.take().unwrap();
        let mut traced = Self::seize(child, home);
        go.write_all(b"go\n").unwrap();
        drop(go);
        let ended = traced.until_it_ends();
        let said = fs::read_to_string(home.join("said")).unwrap();
        assert_eq!(ended, WaitStatus::Exited(traced.leader, 0), "{arguments:?}: {said}");
        Counts(std::mem::take(&mut traced.counted))
    }

    fn seize(child: Child, inside: &Path) -> Self {
        let leader = Pid::from_raw(child.id().try_into().unwrap());
        let inside = inside.canonicalize().unwrap();
        let traced = Self { child, leader, inside, has_ended: false, counted: BTreeMap::new() };
        // Threads that a seized one starts are seized, too: in the end there are no others.
        while traced.seize_threads() > 0 {}
        traced
    }

    fn seize_threads(&self) -> usize {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC;
        let me = gettid().to_string();
        let mut seized = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.leader)).unwrap() {
            let thread = thread.unwrap().path();
            // It may have ended.
            let status = fs::read_to_string(thread.join("status")).unwrap_or_default();
            match status.lines().find_map(|line| line.strip_prefix("TracerPid:\t")) {
                Some("0") => {}
                Some(tracer) if tracer != me => forbidden("it is traced by somebody else"),
                _ => continue,
            }
            let id = Pid::from_raw(thread.file_name().unwrap().to_str().unwrap().parse().unwrap());
            match ptrace::seize(id, options).and_then(|()| ptrace::interrupt(id)) {
                Ok(()) => seized += 1,
                Err(Errno::ESRCH) => {}
                Err(error) => forbidden(error.desc()),
            }
        }
        seized
    }

    /// What is done for this work, which may panic.
    pub fn count(&mut self, work: impl FnOnce() + Send) -> Counts {
        struct Done(Pid);
        impl Drop for Done {
            fn drop(&mut self) {
                let _ = kill(self.0, DONE);
            }
        }
        self.counted.clear();
        let leader = self.leader;
        thread::scope(|scope| {
            let working = scope.spawn(move || {
                let _done = Done(leader);
                work();
            });
            while self.go_on(wait(WaitPidFlag::empty()).unwrap()) != Some(DONE) {}
            self.until_silent();
            working.join().unwrap();
        });
        Counts(std::mem::take(&mut self.counted))
    }

    /// After an answer there may be something left to do: files to close, for the most part. It is done when all
    /// threads wait, and none of them for us.
    fn until_silent(&mut self) {
        loop {
            match wait(WaitPidFlag::WNOHANG).unwrap() {
                WaitStatus::StillAlive if self.all_threads_sleep() => return,
                WaitStatus::StillAlive => thread::yield_now(),
                stop => drop(self.go_on(stop)),
            }
        }
    }

    /// Whether none runs, waits for a disk, or is stopped.
    fn all_threads_sleep(&self) -> bool {
        fs::read_dir(format!("/proc/{}/task", self.leader)).unwrap().all(|thread| {
            // One that has ended since does nothing, either.
            let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
            // The name before it, in brackets, may hold anything.
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('S'))
        })
    }

    fn until_it_ends(&mut self) -> WaitStatus {
        loop {
            let stop = wait(WaitPidFlag::empty()).unwrap();
            if self.is_end(stop) {
                self.has_ended = true;
                return stop;
            }
            self.go_on(stop);
        }
    }

    /// The first thread is the last of which the end is told.
    fn is_end(&self, stop: WaitStatus) -> bool {
        matches!(stop, WaitStatus::Exited(id, _) | WaitStatus::Signaled(id, ..) if id == self.leader)
    }

    /// Lets a thread go on to its next stop. Which signal it was to get, if any.
    fn go_on(&mut self, stop: WaitStatus) -> Option<Signal> {
        let (id, signal) = match stop {
            WaitStatus::PtraceSyscall(id) => {
                self.note(id);
                (id, None)
            }
            WaitStatus::PtraceEvent(id, _, event) => {
                if event == Event::PTRACE_EVENT_EXEC as i32 {
                    // So far it was the shell.
                    self.counted.clear();
                }
                (id, None)
            }
            WaitStatus::Stopped(id, signal) => (id, Some(signal)),
            end => {
                self.has_ended = self.is_end(end);
                assert!(!self.has_ended, "the server has ended: {end:?}");
                return None;
            }
        };
        match ptrace::syscall(id, signal.filter(|signal| *signal != DONE)) {
            // Killed meanwhile: that is its next stop.
            Ok(()) | Err(Errno::ESRCH) => signal,
            Err(error) => panic!("a thread cannot be let go on: {error}"),
        }
    }

    /// Notes the call that a thread is about to make.
    fn note(&mut self, id: Pid) {
        let Ok(info) = ptrace::syscall_info(id) else { return };
        if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return;
        }
        let Ok(registers) = ptrace::getregs(id) else { return };
        #[cfg(target_arch = "x86_64")]
        let (number, first, second) = (registers.orig_rax as c_long, registers.rdi, registers.rsi);
        #[cfg(target_arch = "aarch64")]
        let (number, first, second) =
            (registers.regs[8] as c_long, registers.regs[0], registers.regs[1]);
        match call(number, second as i32) {
            Some(Call::OfPath(name)) => *self.counted.entry(name).or_default() += 1.0,
            Some(Call::OfFile(name)) => {
                let file = fs::read_link(format!("/proc/{id}/fd/{}", first as i32));
                if file.is_ok_and(|file| file.starts_with(&self.inside)) {
                    *self.counted.entry(name).or_default() += 1.0;
                }
            }
            None => {}
        }
    }
}

impl Drop for Traced {
    /// All threads must be waited for by who traces them, or the process never ends.
    fn drop(&mut self) {
        while !self.has_ended {
            let _ = self.child.kill();
            match wait(WaitPidFlag::empty()) {
                Ok(stop) => self.has_ended = self.is_end(stop),
                Err(_) => return,
            }
        }
    }
}

fn forbidden(why: &str) -> ! {
    panic!(
        "the system calls of a process of our own cannot be counted with ptrace: {why}. These tests need that: see \
         whether a container's seccomp profile, kernel.yama.ptrace_scope or a debugger is in the way"
    )
}

/// For the next stop of a thread that this thread traces: other tests of this process have children, too.
fn wait(flags: WaitPidFlag) -> nix::Result<WaitStatus> {
    waitpid(Pid::from_raw(-1), Some(flags | WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD))
}

enum Call {
    OfPath(&'static str),
    OfFile(&'static str),
}

/// What has to do with files; the different calls for one thing have one name. What depends on how threads meet
/// (futex, epoll), on memory, or on the network is left out. `second` is its
/// second argument.
fn call(number: c_long, second: i32) -> Option<Call> {
    use Call::{OfFile, OfPath};
    #[cfg(target_arch = "x86_64")]
    match number {
        libc::SYS_open | libc::SYS_creat => return Some(OfPath("open")),
        libc::SYS_stat | libc::SYS_lstat => return Some(OfPath("stat")),
        libc::SYS_access => return Some(OfPath("access")),
        libc::SYS_mkdir => return Some(OfPath("mkdir")),
        libc::SYS_rename | libc::SYS_renameat => return Some(OfPath("rename")),
        libc::SYS_symlink => return Some(OfPath("symlink")),
        libc::SYS_link => return Some(OfPath("link")),
        libc::SYS_unlink | libc::SYS_rmdir => return Some(OfPath("unlink")),
        libc::SYS_readlink => return Some(OfPath("readlink")),
        libc::SYS_chmod => return Some(OfPath("chmod")),
        libc::SYS_utime | libc::SYS_utimes | libc::SYS_futimesat => return Some(OfPath("utimens")),
        libc::SYS_getdents => return Some(OfFile("getdents")),
        libc::SYS_sync_file_range => return Some(OfFile("fdatasync")),
        _ => {}
    }
    Some(match number {
        libc::SYS_openat | libc::SYS_openat2 => OfPath("open"),
        libc::SYS_newfstatat | libc::SYS_statx | libc::SYS_fstat => OfPath("stat"),
        libc::SYS_faccessat | libc::SYS_faccessat2 => OfPath("access"),
        libc::SYS_mkdirat => OfPath("mkdir"),
        libc::SYS_renameat2 => OfPath("rename"),
        libc::SYS_symlinkat => OfPath("symlink"),
        libc::SYS_linkat => OfPath("link"),
        libc::SYS_unlinkat => OfPath("unlink"),
        libc::SYS_readlinkat => OfPath("readlink"),
        libc::SYS_fchmod | libc::SYS_fchmodat => OfPath("chmod"),
        libc::SYS_utimensat => OfPath("utimens"),
        libc::SYS_statfs | libc::SYS_fstatfs => OfPath("statfs"),
        libc::SYS_fsync => OfFile("fsync"),
        libc::SYS_fdatasync => OfFile("fdatasync"),
        libc::SYS_syncfs | libc::SYS_sync => OfPath("syncfs"),
        libc::SYS_read | libc::SYS_readv | libc::SYS_pread64 | libc::SYS_preadv => OfFile("read"),
        libc::SYS_write | libc::SYS_writev | libc::SYS_pwrite64 | libc::SYS_pwritev => {
            OfFile("write")
        }
        libc::SYS_copy_file_range => OfFile("copy"),
        libc::SYS_ftruncate | libc::SYS_fallocate => OfFile("truncate"),
        libc::SYS_fadvise64 | libc::SYS_readahead => OfFile("advise"),
        libc::SYS_lseek => OfFile("seek"),
        // What else fcntl does is what a debug build asserts of its file handles.
        libc::SYS_fcntl
            if !matches!(
                second,
                libc::F_SETLK | libc::F_SETLKW | libc::F_OFD_SETLK | libc::F_OFD_SETLKW
            ) =>
        {
            return None;
        }
        libc::SYS_fcntl | libc::SYS_flock => OfFile("lock"),
        libc::SYS_getdents64 => OfFile("getdents"),
        libc::SYS_close => OfFile("close"),
        _ => return None,
    })
}
