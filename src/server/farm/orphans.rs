//! Commands that have outlived their server: it was killed, and could not end them. A job that is requeued
//! must not be worked on twice at once.

use std::{fs, path::Path, thread, time::Duration};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::hook::JOB_ID;

/// How often it is looked again: what is being ended may just have started something.
const ROUNDS: usize = 100;

const PAUSE: Duration = Duration::from_millis(10);

/// Ends all that the commands of these jobs have left running on this machine. What has made itself
/// independent of them (a daemon, which has a session of its own) goes on.
pub(super) fn end(jobs: &[String]) {
    if jobs.is_empty() {
        return;
    }
    let marks: Vec<Vec<u8>> = jobs.iter().map(|id| format!("{JOB_ID}={id}").into_bytes()).collect();
    let mut ended = 0;
    for round in 0..ROUNDS {
        let found = end_once(&marks);
        if found == 0 {
            break;
        }
        if round == 0 {
            ended = found;
        }
        thread::sleep(PAUSE);
    }
    if ended > 0 {
        tracing::warn!(
            processes = ended,
            jobs = jobs.len(),
            "commands of jobs ran on when the last server was killed: they are ended"
        );
    }
}

/// How many there were.
fn end_once(marks: &[Vec<u8>]) -> usize {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let mut found = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        // A server that a command has started is itself marked.
        if pid == rustix::process::getpid() || !is_marked(&entry.path(), marks) {
            continue;
        }
        // The number may be another's by now: what is held on to here is looked at once more.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if is_marked(&entry.path(), marks) && pidfd_send_signal(&process, Signal::KILL).is_ok() {
            found += 1;
        }
    }
    found
}

/// Whether this process was started for one of these jobs, and belongs to its command still.
fn is_marked(process: &Path, marks: &[Vec<u8>]) -> bool {
    let Ok(environment) = fs::read(process.join("environ")) else { return false };
    let is_for_job = environment.split(|byte| *byte == 0).any(|one| marks.iter().any(|m| m == one));
    is_for_job && fs::read_to_string(process.join("stat")).is_ok_and(|stat| is_of_a_group(&stat))
}

/// Whether a process is in a group that is not a whole session: that of a command is within its server's.
fn is_of_a_group(stat: &str) -> bool {
    // The program's name, in parentheses, may have anything in it.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let mut fields = rest.split(' ').skip(2);
    matches!((fields.next(), fields.next()), (Some(group), Some(session)) if group != session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_have_a_session_of_their_own() {
        assert!(is_of_a_group("12 (blender) S 1 12 7 0 -1"));
        assert!(!is_of_a_group("12 (a) b) S 1 12 12 0 -1"));
        assert!(!is_of_a_group("12 (x"));
    }
}
