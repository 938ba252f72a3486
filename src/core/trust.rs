//! Whether replicas may be given places: what let a job in has to hold each time that one of
//! its replicas gets a place, the first or another one. It is asked where places are looked
//! for and once more where they are given (`apply`), so no path goes around it. What ends
//! by itself withholds new places alone; what is taken back also stops what runs (ADR 36).

use crate::approval;
use crate::consent;
use crate::job::Job;
use crate::reason::Refusal;
use crate::state::State;

/// Why no replica of the job gets a place now; None when what let it in still counts.
pub fn withheld(state: &State, job: &Job) -> Option<Refusal> {
    consent::judge_again(state, &job.spec).and_then(|()| approval::judge_again(state, &job.spec)).err()
}

#[cfg(test)]
mod tests;
