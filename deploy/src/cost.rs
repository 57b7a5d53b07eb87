//! What a function will cost, from how fast the model was measured to be.

use serde::Serialize;

/// Where the prices are from: AWS's page for us-east-1, first tier, without the free tier.
pub const PRICES: Prices = Prices {
    region: "us-east-1",
    date: "2026-05",
    gb_second_x86: 0.000_016_666_7,
    gb_second_arm: 0.000_013_333_4,
    million_requests: 0.20,
    log_gb: 0.50,
};

/// Memory in MB that brings one virtual CPU (AWS, "Configure Lambda function memory").
const MB_A_CPU: f64 = 1769.0;
/// Bytes of a request's lines in the log: START, END, REPORT and the record.
const LOG_BYTES: f64 = 2500.0;

/// Prices in US dollars.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prices {
    /// Of which region.
    pub region: &'static str,
    /// Month in which they were looked up.
    pub date: &'static str,
    /// A second of a gigabyte, `x86_64`.
    pub gb_second_x86: f64,
    /// The same, arm64.
    pub gb_second_arm: f64,
    /// A million requests.
    pub million_requests: f64,
    /// A gigabyte of logs taken in.
    pub log_gb: f64,
}

/// How fast the model is, and what a request asks of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Load {
    /// Prompt tokens a second on the measuring machine.
    pub prefill_tokens_per_s: f64,
    /// Answer tokens a second there.
    pub decode_tokens_per_s: f64,
    /// Threads it was measured with.
    pub threads: usize,
    /// Tokens of a prompt.
    pub prompt_tokens: u64,
    /// Tokens of an answer.
    pub answer_tokens: u64,
}

/// What requests cost, in US dollars.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cost {
    /// Requests.
    pub requests: u64,
    /// Seconds of one.
    pub seconds: f64,
    /// Computing.
    pub compute: f64,
    /// Requests by themselves.
    pub invocations: f64,
    /// Logs.
    pub logs: f64,
    /// All.
    pub total: f64,
}

/// Virtual CPUs that come with so much memory.
pub fn cpus(memory_mb: u64) -> f64 {
    memory_mb as f64 / MB_A_CPU
}

/// The cost of so many requests, one at a time an environment, with no free tier. Speed is scaled by CPUs, no further than the machine that
/// was measured had threads: less than linear below one CPU is not known, and more threads than measured are not assumed to help.
pub fn estimate(load: &Load, memory_mb: u64, is_arm: bool, requests: u64) -> Cost {
    let scale = (cpus(memory_mb) / load.threads.max(1) as f64).min(1.0);
    let seconds = (load.prompt_tokens as f64 / load.prefill_tokens_per_s
        + load.answer_tokens as f64 / load.decode_tokens_per_s)
        / scale;
    let price = if is_arm {
        PRICES.gb_second_arm
    } else {
        PRICES.gb_second_x86
    };
    let n = requests as f64;
    let compute = n * seconds * (memory_mb as f64 / 1024.0) * price;
    let invocations = n / 1e6 * PRICES.million_requests;
    let logs = n * LOG_BYTES / 1e9 * PRICES.log_gb;
    Cost {
        requests,
        seconds,
        compute,
        invocations,
        logs,
        total: compute + invocations + logs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bill_by_hand() {
        // 100 / 1000 + 50 / 100 = 0.6 s on one thread; 1769 MB is one CPU: 0.6 · 1.72754 GB · 0.0000166667 = $0.00001727540 a request.
        let load = Load {
            prefill_tokens_per_s: 1000.0,
            decode_tokens_per_s: 100.0,
            threads: 1,
            prompt_tokens: 100,
            answer_tokens: 50,
        };
        let cost = estimate(&load, 1769, false, 1_000_000);
        assert!((cost.seconds - 0.6).abs() < 1e-9);
        assert!((cost.compute - 17.2754).abs() < 1e-3, "{cost:?}");
        assert!((cost.invocations - 0.2).abs() < 1e-12);
        assert!((cost.logs - 1.25).abs() < 1e-12);
        // Half the CPU takes twice the time: the same bill.
        let half = estimate(&load, 884, false, 1_000_000);
        assert!((half.compute - cost.compute).abs() < 1e-6);
        assert!(estimate(&load, 1769, true, 1_000_000).compute < cost.compute);
        // More CPUs than were measured are paid for and not assumed to help.
        assert!((estimate(&load, 3538, false, 1).seconds - 0.6).abs() < 1e-9);
    }
}
