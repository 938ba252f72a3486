//! Closed-loop load and its figures. One code path measures every system, so that
//! a difference in the figures is a difference of the systems. It does not know
//! what a call does.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// One client of the system under load.
pub trait Client: Send + 'static {
    /// One counted call. Err is a call that was not acknowledged as a success.
    fn call(&mut self) -> impl Future<Output = Result<(), String>> + Send;
    /// Work that belongs to the load and is counted apart (removing what a call made): how many commits it took.
    fn between(&mut self) -> impl Future<Output = Result<u64, String>> + Send {
        async { Ok(0) }
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub calls: u64,
    /// Commits between the counted calls.
    pub between: u64,
    pub errors: u64,
    pub seconds: f64,
    /// Microseconds, sorted.
    latencies: Vec<u32>,
    pub first_error: Option<String>,
}

impl Figures {
    pub fn per_second(&self) -> f64 {
        self.calls as f64 / self.seconds.max(0.001)
    }

    /// Counted calls and what lay between them.
    pub fn commits_per_second(&self) -> f64 {
        (self.calls + self.between) as f64 / self.seconds.max(0.001)
    }

    /// The latency below which `share` of the calls stayed, in milliseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        self.latencies.get(at).map_or(0.0, |micros| f64::from(*micros) / 1000.0)
    }

    fn add(&mut self, other: Figures) {
        self.calls += other.calls;
        self.between += other.between;
        self.errors += other.errors;
        self.latencies.extend(other.latencies);
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// Lets all `clients` call as fast as they are answered. What happens during `warm_up` is not counted.
pub async fn closed_loop<C: Client>(clients: Vec<C>, warm_up: Duration, measured: Duration) -> Figures {
    let counting = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = clients.into_iter().map(|c| tokio::spawn(one(c, counting.clone(), stop.clone()))).collect();
    tokio::time::sleep(warm_up).await;
    counting.store(true, Ordering::Relaxed);
    let began = Instant::now();
    tokio::time::sleep(measured).await;
    let seconds = began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let mut total = Figures { seconds, ..Figures::default() };
    for task in tasks {
        match task.await {
            Ok(figures) => total.add(figures),
            Err(error) => total.first_error = Some(error.to_string()),
        }
    }
    total.latencies.sort_unstable();
    total
}

async fn one<C: Client>(mut client: C, counting: Arc<AtomicBool>, stop: Arc<AtomicBool>) -> Figures {
    let mut own = Figures::default();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let result = client.call().await;
        let micros = began.elapsed().as_micros().min(u128::from(u32::MAX)) as u32;
        let counted = counting.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed);
        match result {
            Ok(()) if counted => {
                own.calls += 1;
                own.latencies.push(micros);
            }
            Ok(()) => {}
            Err(error) => {
                own.errors += u64::from(counted);
                own.first_error.get_or_insert(error);
                // A refused call returns at once; without a pause its loop would drown the others.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        match client.between().await {
            Ok(commits) => own.between += if counted { commits } else { 0 },
            Err(error) => {
                own.first_error.get_or_insert(error);
            }
        }
    }
    own
}

/// The middle of some figures.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_medians_are_those_of_the_sorted_values() {
        let figures = Figures { latencies: (1..=100).map(|ms| ms * 1000).collect(), ..Figures::default() };
        assert_eq!(figures.percentile(0.0), 1.0);
        assert_eq!(figures.percentile(1.0), 100.0);
        assert!((figures.percentile(0.5) - 51.0).abs() < 1.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
