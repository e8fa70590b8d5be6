//! What the kernel knows of a process: its memory, and the time that it and its children have worked.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// The kernel's clock ticks; a hundred a second on every Linux that there is.
const TICK: Duration = Duration::from_millis(10);

/// Bytes resident now.
pub fn resident_bytes(pid: u32) -> u64 {
    memory(pid, "VmRSS:")
}

/// The most bytes that were resident since [`forget_peak`].
pub fn peak_bytes(pid: u32) -> u64 {
    memory(pid, "VmHWM:")
}

/// Has the kernel measure the peak anew.
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("it is a process of ours");
}

fn memory(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel counts memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kilobytes") * 1_024
}

/// How long a process, its children and those that it has buried have worked.
pub fn worked(pid: u32) -> Duration {
    let mut ticks = 0;
    for process in fs::read_dir("/proc").expect("processes are listed").flatten() {
        let name = process.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some(fields) = stat(&process.path()) else { continue };
        // Behind the name in brackets: state, parent; and from the twelfth on user, system, and both of buried children.
        let number = |index: usize| fields[index].parse::<u32>().unwrap_or_default();
        if id == pid {
            ticks += (11..15).map(number).sum::<u32>();
        } else if number(1) == pid {
            ticks += (11..13).map(number).sum::<u32>();
        }
    }
    TICK * ticks
}

fn stat(process: &Path) -> Option<Vec<String>> {
    // It may have ended meanwhile.
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(ToOwned::to_owned).collect())
}
