//! Contenders that take turns, so that whatever else the machine does slows all of them.

use indicatif::{ProgressBar, ProgressStyle};

/// A piece of work that is measured, with `N` values each time.
pub(crate) struct Contender<'a, const N: usize> {
    name: String,
    work: Box<dyn FnMut() -> [f64; N] + 'a>,
}

impl<'a, const N: usize> Contender<'a, N> {
    pub(crate) fn new(name: impl Into<String>, work: impl FnMut() -> [f64; N] + 'a) -> Self {
        Self { name: name.into(), work: Box::new(work) }
    }
}

/// Lets each contender work once in every round. Another one begins each time. The first round warms up, and does not count.
/// Returns the values in the contenders' order.
pub(crate) fn take_turns<const N: usize>(
    rounds: usize,
    mut contenders: Vec<Contender<'_, N>>,
) -> Vec<[Vec<f64>; N]> {
    let mut values: Vec<[Vec<f64>; N]> =
        contenders.iter().map(|_| std::array::from_fn(|_| Vec::new())).collect();
    let bar = ProgressBar::new(((rounds + 1) * contenders.len()) as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} {msg}") {
        bar.set_style(style);
    }
    let count = contenders.len();
    for round in 0..=rounds {
        for turn in 0..count {
            let position = (round + turn) % count;
            let contender = &mut contenders[position];
            bar.set_message(contender.name.clone());
            let measured = (contender.work)();
            let label = if round == 0 { "warm-up".to_owned() } else { format!("round {round}") };
            bar.suspend(|| eprintln!("{label}: {}: {}", contender.name, list(&measured)));
            bar.inc(1);
            if round > 0 {
                values[position].iter_mut().zip(measured).for_each(|(values, value)| values.push(value));
            }
        }
    }
    bar.finish_and_clear();
    values
}

fn list(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.3}")).collect::<Vec<_>>().join("  ")
}
