//! `sim run SEED`: one run. `sim sweep FROM COUNT`: many, each in a process of its own.
//!
//! The process has its own `getrandom`: whatever asks the system for randomness (the standard library for the order of its maps,
//! tokio for the branch of a `select!` that is looked at first) gets a sequence that the seed decides. It has its own
//! `clock_gettime`, too, which shows the time of the run, and its own `getpid`: a node writes its number into the file that locks a
//! directory, and how long that number is decides where a disk is full, and what a crash tears.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use sim::run::{Options, run};

/// The state of the sequence; 0 until there is a seed.
static RANDOM: AtomicU64 = AtomicU64::new(0);

/// The system call's name and shape; never fails.
#[expect(unsafe_code, reason = "it takes the place of the C library's function, which the standard library calls")]
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: the caller says that `length` bytes at `buffer` are its own, as for the system call.
    let into = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    for byte in into {
        let state = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        *byte = (mixed >> 40).to_le_bytes()[0];
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// The C library's function, which fills in seconds and nanoseconds; every clock is the same one.
#[expect(unsafe_code, reason = "it takes the place of the C library's function, which the standard library calls")]
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(_clock: i32, into: *mut [i64; 2]) -> i32 {
    let (seconds, nanoseconds) = sim::clock::system_time();
    let now = [seconds.cast_signed(), nanoseconds.cast_signed()];
    // SAFETY: the caller gives room for a timespec, as for the system call.
    unsafe { into.write(now) };
    0
}

/// The C library's function; the system call's name and shape.
#[expect(unsafe_code, reason = "it takes the place of the C library's function, which the standard library calls")]
#[unsafe(no_mangle)]
extern "C" fn getpid() -> i32 {
    1
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run", seed, options @ ..] => run_one(seed.parse().context("SEED is a number")?, options),
        _ => {
            bail!("usage: sim run SEED [--only FAULT] [--seconds N] [--without RULE] [--careless true] [--log FILTER]")
        }
    }
}

fn run_one(seed: u64, words: &[&str]) -> Result<()> {
    let mut options = Options { seed, faults_ms: 20_000, only: None, careless: false, rules: model::Rules::all() };
    for pair in words.chunks(2) {
        match pair {
            ["--only", kind] => options.only = Some((*kind).to_owned()),
            ["--seconds", seconds] => options.faults_ms = seconds.parse::<u64>()? * 1_000,
            ["--careless", answer] => options.careless = answer.parse()?,
            ["--log", filter] => log(filter),
            #[cfg(feature = "mutations")]
            ["--without", rule] => options.rules = model::Rules::without_named(rule),
            other => bail!("{other:?} is not understood"),
        }
    }
    abort_on_panic(seed);
    // The order of a thread's maps begins with its first one: whether there is a log must not show.
    let run = move || {
        RANDOM.store(seed, Ordering::Relaxed);
        run(&options)
    };
    let Ok(report) = std::thread::Builder::new().stack_size(16 << 20).spawn(run)?.join() else {
        bail!("the run of seed {seed} panicked");
    };
    println!("{}", report.line());
    for what in report.violations.iter().chain(&report.too_little) {
        println!("  {what}");
    }
    if !report.is_good() {
        println!("replay: cargo run -p sim -- run {seed} {}", words.join(" "));
        std::process::exit(1);
    }
    Ok(())
}

fn log(filter: &str) {
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
}

/// As the server does: an impossible state is a finding.
fn abort_on_panic(seed: u64) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        println!("seed={seed} panicked; replay: cargo run -p sim -- run {seed}");
        std::process::exit(101);
    }));
}
