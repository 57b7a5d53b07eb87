//! The machine and the program that a run was trained with.

use crate::{bench, model::all_cores};
use serde::{Deserialize, Serialize};

/// The machine and the program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Version of fledgling.
    pub version: String,
    /// Operating system and architecture.
    pub system: String,
    /// The processor.
    pub cpu: String,
    /// Threads that compute.
    pub threads: u64,
    /// Memory of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

impl Environment {
    /// This process, with so many threads (0: all cores).
    pub fn here(threads: usize) -> Self {
        let memory_bytes = sysinfo::System::new()
            .map(|mut system| {
                system.refresh_memory();
                system.total_memory()
            })
            .ok()
            .filter(|bytes| *bytes > 0);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: bench::machine(),
            threads: match threads {
                0 => all_cores(),
                n => n,
            } as u64,
            memory_bytes,
        }
    }
}

/// The most memory that this process has held, where the system tells.
pub fn peak_bytes() -> Option<u64> {
    bench::peak_rss_mib().map(|mib| (mib * 1024.0 * 1024.0) as u64)
}
