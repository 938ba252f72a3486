//! What is left of budgets for what would start, when many ask at once: the arithmetic of
//! `judge`, for one after the other, each with what the ones before it got. It starts
//! nothing, and stops nothing.

use super::judge::lowest;
use super::meter::{Two, holds_and_is_wanted, price};
use super::{Kind, START_MS};
use crate::id::TenantNo;
use crate::job::{Job, Replica};
use crate::quota::tree;
use crate::scaling::is_wanted;
use crate::state::State;
use crate::tenant::Tenant;
use std::collections::BTreeMap;

/// One limit of one tenant.
#[derive(Clone, Copy, Debug)]
struct Line {
    kind: Kind,
    /// Beside what was used and what is kept for what runs, in units of the meter.
    left: u128,
    /// To the end of the window.
    window_ms: u64,
}

/// The limits of some tenants that more and more is taken from.
#[derive(Clone, Debug, Default)]
pub struct Rest(BTreeMap<TenantNo, Vec<Line>>);

/// A service as budgets know it.
#[derive(Clone, Debug)]
pub struct Payer {
    /// Those whose limits its work counts for.
    tenants: Vec<TenantNo>,
    /// Of one replica.
    each: Two,
    /// Replicas that are never stopped for want of a budget.
    least: u32,
    /// Of those, so many are kept for already.
    kept: u32,
    /// Replicas that run are paid for a while.
    running: u32,
}

impl Rest {
    /// A service that draws from it, too.
    pub fn join(&mut self, state: &State, job: &Job) -> Payer {
        let path = state.tenant(job.tenant).map(|tenant| tree::path(state, tenant)).unwrap_or_default();
        let watched = path.into_iter().filter(|tenant| tenant.quota.budgets.is_some());
        let mut tenants = Vec::new();
        for tenant in watched {
            self.0.entry(tenant.no).or_insert_with(|| lines(state, tenant));
            tenants.push(tenant.no);
        }
        let running: Vec<&Replica> = job.replicas.iter().filter(|replica| holds_and_is_wanted(replica)).collect();
        let prices = running.iter().filter_map(|replica| Some(price(state, replica.allocation()?)));
        let each = match prices.max() {
            _ if tenants.is_empty() => 0,
            None => lowest(state, &job.spec),
            Some(dearest) => dearest,
        };
        let had = |replica: &&Replica| replica.generation.0 > 0 && is_wanted(&replica.phase);
        Payer {
            each: [job.spec.resources.gpu.milli().into(), each],
            least: job.spec.scaling.map_or(0, |scaling| scaling.min.into()),
            kept: job.replicas.iter().filter(had).count() as u32,
            running: running.len() as u32,
            tenants,
        }
    }

    /// Whether the budgets pay for one replica more of a service that has so many.
    pub fn pays(&self, payer: &Payer, granted: u32) -> bool {
        self.costs(payer, granted).all(|(_, line, cost)| cost <= line.left)
    }

    /// It gets it, whatever is left.
    pub fn pay(&mut self, payer: &Payer, granted: u32) {
        let costs: Vec<(TenantNo, usize, u128)> =
            self.costs(payer, granted).map(|(at, _, cost)| (at.0, at.1, cost)).collect();
        for (tenant, i, cost) in costs {
            if let Some(line) = self.0.get_mut(&tenant).and_then(|lines| lines.get_mut(i)) {
                line.left = line.left.saturating_sub(cost);
            }
        }
    }

    fn costs(&self, payer: &Payer, granted: u32) -> impl Iterator<Item = ((TenantNo, usize), Line, u128)> {
        let lines = payer.tenants.iter().filter_map(|no| Some((*no, self.0.get(no)?)));
        let lines = lines.flat_map(|(no, lines)| lines.iter().enumerate().map(move |(i, line)| ((no, i), *line)));
        lines.map(move |(at, line)| {
            let time_ms = match granted {
                // What never stops is paid to the end of the window, once.
                _ if granted < payer.least => {
                    if granted < payer.kept {
                        0
                    } else {
                        line.window_ms.max(1)
                    }
                }
                _ if granted < payer.running => 0,
                _ => line.window_ms.clamp(1, START_MS),
            };
            (at, line, payer.each[line.kind as usize].saturating_mul(time_ms.into()))
        })
    }
}

fn lines(state: &State, tenant: &Tenant) -> Vec<Line> {
    let (meter, now) = (state.meter(tenant.no), state.meta().now_ms);
    let limits = tenant.quota.budgets.iter().flat_map(|budgets| budgets.limits());
    let line = |limit: super::Limit| {
        let window_ms = limit.window.end_ms(now) - now;
        let taken =
            meter.used(limit.kind, limit.window).saturating_add(meter.rates.reserved(limit.kind, now, window_ms));
        Line { kind: limit.kind, left: limit.most.saturating_sub(taken), window_ms }
    };
    limits.map(line).collect()
}
