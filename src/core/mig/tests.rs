//! The rules, held against a GPU that is looked at part by part, and against every order of arrivals.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn name(text: &str) -> DeviceType {
    DeviceType::new(text).unwrap()
}

/// Every sound slice, by the table of `nvidia-smi mig -lgipp`: profile ids 19, 20, 15, 14, 9, 5 and 0.
fn every() -> Vec<Slice> {
    Shape::ALL
        .iter()
        .flat_map(|shape| shape.starts().iter().map(|start| Slice { shape: *shape, start: *start }))
        .collect()
}

fn parts(slice: Slice) -> BTreeSet<u8> {
    (slice.start..slice.start + slice.shape.size()).collect()
}

/// Whether the slices can be on one GPU at once, by the parts that each takes.
fn together(slices: &[Slice]) -> bool {
    let mut taken = BTreeSet::new();
    let media = slices.iter().filter(|slice| slice.shape == Shape::OneMedia).count();
    media <= 1 && slices.iter().all(|slice| parts(*slice).into_iter().all(|part| part < PARTS && taken.insert(part)))
}

/// Whether there are positions at which all of these can be on one GPU at once: all are tried.
fn exist(shapes: &[Shape], chosen: &mut Vec<Slice>) -> bool {
    let Some((shape, rest)) = shapes.split_first() else { return true };
    shape.starts().iter().any(|start| {
        chosen.push(Slice { shape: *shape, start: *start });
        let fits = together(chosen) && exist(rest, chosen);
        chosen.pop();
        fits
    })
}

#[test]
fn names_are_those_of_the_type() {
    for (device, profile, shape) in [
        ("A100-40G", "1g.10gb", Some(Shape::OneDouble)),
        ("A100-80G", "1g.10gb", Some(Shape::One)),
        ("H100-80G", "1g.10gb+me", Some(Shape::OneMedia)),
        ("H100-80G", "3g.40gb", Some(Shape::Three)),
        ("H100-80G", "3g.20gb", None),
        ("T4-16G", "1g.10gb", None),
    ] {
        assert_eq!(Shape::named(&name(device), &name(profile)), shape, "{device} {profile}");
    }
    for geometry in GEOMETRIES {
        for shape in Shape::ALL {
            assert_eq!(geometry.shape(&name(geometry.name(shape))), Some(shape));
        }
    }
}

#[test]
fn a_gpu_is_divided_as_the_guide_says() {
    let most = |shape: Shape| {
        let mut layout = Layout::default();
        let mut count = 0;
        while let Some((slice, _)) = layout.best(shape) {
            (layout, count) = (layout.with(slice), count + 1);
        }
        count
    };
    assert_eq!(Shape::ALL.map(most), [7, 1, 4, 3, 2, 1, 1]);
    assert_eq!(Shape::ALL.map(Shape::milli), [125, 125, 250, 250, 500, 500, 1000]);
    // Four and three fill a GPU, in either order; two threes leave no room for a four.
    for order in [[Shape::Four, Shape::Three], [Shape::Three, Shape::Four]] {
        let all = order.iter().fold(Layout::default(), |layout, shape| layout.with(layout.best(*shape).unwrap().0));
        assert_eq!((all.free(), all.room()), (0, 0), "{order:?}");
    }
}

#[test]
fn small_slices_gather_where_they_cost_the_least() {
    let mut layout = Layout::default();
    let mut starts = Vec::new();
    while let Some((slice, _)) = layout.best(Shape::One) {
        (layout, starts) = (layout.with(slice), [starts, vec![slice.start]].concat());
    }
    assert_eq!(starts, [6, 4, 5, 0, 1, 2, 3], "first the half in which no four fits");
    // After two of them a four still has its place, and after three of them a three.
    let two = Layout::default().with(Slice { shape: Shape::One, start: 6 }).with(Slice { shape: Shape::One, start: 4 });
    assert!(two.best(Shape::Four).is_some());
    // In the order of positions, one alone would have taken it.
    assert!(Layout::default().with(Slice { shape: Shape::One, start: 0 }).best(Shape::Four).is_none());
}

#[test]
fn two_free_parts_need_not_be_a_place_for_two() {
    let layout = [0, 2, 3, 4, 5]
        .into_iter()
        .fold(Layout::default(), |layout, start| layout.with(Slice { shape: Shape::One, start }));
    assert_eq!((layout.free(), layout.best(Shape::Two)), (3, None));
    assert!(layout.best(Shape::OneDouble).is_some_and(|(slice, _)| slice.start == 6));
}

proptest! {
    #[test]
    fn slices_never_overlap_and_what_is_taken_comes_back(ops in prop::collection::vec((0usize..7, 0usize..8, any::<bool>()), 0..40)) {
        let (mut layout, mut there) = (Layout::default(), Vec::<Slice>::new());
        for (shape, which, goes) in ops {
            if goes && !there.is_empty() {
                layout = layout.without(there.remove(which % there.len()));
            } else if let Some((slice, cost)) = layout.best(Shape::ALL[shape]) {
                prop_assert_eq!(layout.with(slice).room() + cost, layout.room());
                layout = layout.with(slice);
                there.push(slice);
            }
            prop_assert!(together(&there), "{:?}", there);
            let taken: usize = there.iter().map(|slice| usize::from(slice.shape.size())).sum();
            prop_assert_eq!(layout.free() as usize, usize::from(PARTS) - taken);
            for slice in every() {
                let beside = together(&[there.as_slice(), &[slice]].concat());
                prop_assert_eq!(layout.fits(slice), beside, "{:?} beside {:?}", slice, there);
            }
        }
        prop_assert_eq!(there.iter().fold(layout, |layout, slice| layout.without(*slice)), Layout::default());
    }

    /// Of one kind, as many are placed one after another as there can be at all beside what is there.
    #[test]
    fn of_one_kind_as_many_are_placed_as_any_positions_hold(there in prop::collection::vec(0usize..21, 0..4), shape in 0usize..7) {
        let (mut layout, mut fixed) = (Layout::default(), Vec::new());
        for slice in there.into_iter().map(|at| every()[at % every().len()]) {
            if layout.fits(slice) {
                layout = layout.with(slice);
                fixed.push(slice);
            }
        }
        let shape = Shape::ALL[shape];
        let mut count = 0;
        while let Some((slice, _)) = layout.best(shape) {
            (layout, count) = (layout.with(slice), count + 1);
        }
        prop_assert!(exist(&vec![shape; count], &mut fixed.clone()));
        prop_assert!(!exist(&vec![shape; count + 1], &mut fixed.clone()));
    }
}

/// All sequences of arrivals of a length: how many can be placed at all, are placed by the choice, and by taking the
/// first free position. Nobody knows what comes next, so the choice can't place all of them.
fn sequences(length: usize) -> [usize; 3] {
    let kinds = [Shape::One, Shape::OneDouble, Shape::Two, Shape::Three, Shape::Four, Shape::Seven];
    let mut all: Vec<Vec<Shape>> = vec![Vec::new()];
    for _ in 0..length {
        all = all.iter().flat_map(|before| kinds.map(|kind| [before.as_slice(), &[kind]].concat())).collect();
    }
    let mut out = [0; 3];
    for arrivals in all.iter().filter(|arrivals| exist(arrivals, &mut Vec::new())) {
        let by = |pick: &dyn Fn(Layout, Shape) -> Option<Slice>| {
            let end = arrivals.iter().try_fold(Layout::default(), |layout, of| Some(layout.with(pick(layout, *of)?)));
            usize::from(end.is_some())
        };
        out[0] += 1;
        out[1] += by(&|layout, shape| layout.best(shape).map(|(slice, _)| slice));
        out[2] += by(&|layout, shape| layout.positions(shape).next());
    }
    out
}

#[test]
fn the_choice_places_more_arrivals_than_the_first_free_position() {
    assert_eq!(sequences(3), [78, 76, 57]);
    assert_eq!(sequences(4), [124, 101, 88]);
}
