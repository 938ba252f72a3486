//! How many of something will do, where with more of it the answer changes once.

/// The largest number up to `most` that fits, if each smaller than one that fits does too; 0 where none else does.
pub(crate) fn most(most: u64, mut fits: impl FnMut(u64) -> bool) -> u64 {
    if most == 0 || fits(most) {
        return most;
    }
    let (mut few, mut many) = (0, most);
    while many - few > 1 {
        let half = u64::midpoint(few, many);
        if fits(half) { few = half } else { many = half }
    }
    few
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_largest_that_fits() {
        for (most, fits) in (0..30).flat_map(|most| (0..40).map(move |fits| (most, fits))) {
            assert_eq!(super::most(most, |n| n <= fits), most.min(fits));
        }
    }
}
