//! The scores of many nodes, kept so that one more costs a moment and the best two are found by a
//! look at each block of them. Flat arrays: a node's score is a number in its place, and a tree of
//! scores would cost ten times that for each node that changes.

use crate::id::NodeNo;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Nodes of a block: their numbers follow one another.
const SIZE: u32 = 64;
/// Of a node without a score.
const NONE: i64 = i64::MIN;

/// A score and its node; the least is the best, and of equal scores the lowest node.
pub(super) type Scored = (Reverse<i64>, NodeNo);

#[derive(Clone, Debug)]
struct Block {
    scores: [i64; SIZE as usize],
    /// The best two.
    top: [Option<Scored>; 2],
}

impl Block {
    const EMPTY: Block = Block { scores: [NONE; SIZE as usize], top: [None; 2] };

    /// The best two of those that are not left out. `first`: the block's first node.
    fn best(&self, first: u32, out: impl Fn(NodeNo) -> bool) -> [Option<Scored>; 2] {
        let mut best: [Option<Scored>; 2] = [None; 2];
        for (i, score) in self.scores.iter().enumerate().filter(|(_, score)| **score != NONE) {
            // In the order of nodes, so only a higher score is better.
            let better = |than: Option<Scored>| than.is_none_or(|(Reverse(other), _)| *score > other);
            if better(best[1]) && !out(NodeNo(first + i as u32)) {
                let new = Some((Reverse(*score), NodeNo(first + i as u32)));
                best = if better(best[0]) { [new, best[0]] } else { [best[0], new] };
            }
        }
        best
    }
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    blocks: BTreeMap<u32, Arc<Block>>,
    count: usize,
}

impl Board {
    /// Takes the scores of nodes, each once, in any order.
    pub fn of(scored: impl Iterator<Item = (NodeNo, i64)>) -> Self {
        let mut blocks: BTreeMap<u32, Block> = BTreeMap::new();
        let mut count = 0;
        for (node, score) in scored {
            let block = blocks.entry(node.0 / SIZE).or_insert(Block::EMPTY);
            block.scores[(node.0 % SIZE) as usize] = score;
            count += 1;
        }
        let settled = |(no, mut block): (u32, Block)| {
            block.top = block.best(no * SIZE, |_| false);
            (no, Arc::new(block))
        };
        Self { blocks: blocks.into_iter().map(settled).collect(), count }
    }

    /// How many nodes have a score.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn has(&self, node: NodeNo) -> bool {
        self.blocks.get(&(node.0 / SIZE)).is_some_and(|block| block.scores[(node.0 % SIZE) as usize] != NONE)
    }

    /// Gives the node that score, or none.
    pub fn set(&mut self, node: NodeNo, score: Option<i64>) {
        let (no, at) = (node.0 / SIZE, (node.0 % SIZE) as usize);
        let block = self.blocks.entry(no).or_insert_with(|| Arc::new(Block::EMPTY));
        let new = score.unwrap_or(NONE);
        if block.scores[at] == new {
            return;
        }
        let block = Arc::make_mut(block);
        self.count += usize::from(new != NONE);
        self.count -= usize::from(block.scores[at] != NONE);
        block.scores[at] = new;
        block.top = block.best(no * SIZE, |_| false);
    }

    /// The best two of those that are not left out, the best first.
    pub fn best_without(&self, out: &BTreeSet<NodeNo>) -> Vec<Scored> {
        let mut best: Vec<Scored> = Vec::with_capacity(4);
        for (no, block) in &self.blocks {
            let (first, last) = (no * SIZE, no * SIZE + (SIZE - 1));
            let all = out.is_empty() || out.range(NodeNo(first)..=NodeNo(last)).next().is_none();
            let top = if all { block.top } else { block.best(first, |node| out.contains(&node)) };
            // Blocks come in the order of their nodes, too.
            for scored in top.into_iter().flatten() {
                if best.len() < 2 || scored < best[1] {
                    best.push(scored);
                    best.sort_unstable();
                    best.truncate(2);
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Rng;

    #[test]
    fn it_finds_what_sorting_finds() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let node = |rng: &mut Rng| {
                NodeNo(if rng.chance(50) { u32::MAX - rng.below(3) as u32 } else { rng.below(300) as u32 })
            };
            let mut plain: BTreeMap<NodeNo, i64> =
                (0..rng.below(200)).map(|_| (node(&mut rng), rng.below(9) as i64)).collect();
            let mut board = Board::of(plain.iter().map(|(node, score)| (*node, *score)));
            for _ in 0..100 {
                let (node, score) = (node(&mut rng), rng.chance(700).then(|| rng.below(9) as i64 - 4));
                board.set(node, score);
                match score {
                    Some(score) => _ = plain.insert(node, score),
                    None => _ = plain.remove(&node),
                }
                let out: BTreeSet<NodeNo> = (0..rng.below(4)).map(|_| NodeNo(rng.below(300) as u32)).collect();
                let mut sorted: Vec<Scored> = plain
                    .iter()
                    .filter(|(node, _)| !out.contains(node))
                    .map(|(node, score)| (Reverse(*score), *node))
                    .collect();
                sorted.sort_unstable();
                sorted.truncate(2);
                assert_eq!(board.best_without(&out), sorted, "seed {seed}");
                assert_eq!((board.len(), board.has(node)), (plain.len(), plain.contains_key(&node)), "seed {seed}");
            }
        }
    }
}
