//! Times at which requests are sent.

use decode::sampling::NoiseKey;
use speculation::Time;

/// The share of the peak that is left at the quietest time of a day.
const NIGHT: f64 = 0.2;
/// The quietest time, as a part of the day: four in the morning.
const QUIETEST: f64 = 4.0 / 24.0;

/// The rate at a time of the day (0 to 1 from midnight to midnight), of which the peak is 1: a cosine between a fifth at four in
/// the morning and the peak at four in the afternoon.
#[must_use]
pub fn of_day(time: f64) -> f64 {
    let turn = std::f64::consts::TAU * (time - QUIETEST);
    NIGHT + (1.0 - NIGHT) * 0.5 * (1.0 - turn.cos())
}

/// A day that lasts `day`, from midnight on, with `peak` requests a second at its busiest: a Poisson process whose rate follows
/// [`of_day`], by thinning (Lewis and Shedler 1979). At most `most` times.
#[must_use]
pub fn day(peak: f64, day: Time, seed: u64, most: usize) -> Vec<Time> {
    let uniform = |turn: u32, place: u32| {
        let bits = NoiseKey::new(seed, 3, place).hash(turn);
        // 53 bits, so that every value is exact; never 0.
        ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    };
    let length = day.as_secs_f64();
    let (mut at, mut times) = (0.0, Vec::new());
    for turn in 0..u32::MAX {
        at -= uniform(turn, 0).ln() / peak;
        // It is not where the peak is not a number above 0.
        let is_today = at < length;
        if !is_today || times.len() == most {
            break;
        }
        if uniform(turn, 1) < of_day(at / length) {
            times.push(Time::from_secs_f64(at));
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_its_requests_where_it_is_busy() {
        let length = Time::from_secs(1000);
        let times = day(50.0, length, 7, usize::MAX);
        // The mean of the curve is 0.6.
        let expected = 50.0 * 1000.0 * 0.6;
        assert!(
            (times.len() as f64 / expected - 1.0).abs() < 0.03,
            "{}",
            times.len()
        );
        assert!(times.is_sorted() && times.last().is_some_and(|&last| last < length));
        let within = |from: u64, until: u64| {
            let is_in =
                |time: &&Time| (Time::from_secs(from)..Time::from_secs(until)).contains(time);
            times.iter().filter(is_in).count() as f64
        };
        let (night, busy) = (within(117, 217), within(617, 717));
        assert!((0.18..0.26).contains(&(night / busy)), "{night} {busy}");
        assert_eq!(day(50.0, length, 7, 10).len(), 10);
        assert!(day(f64::NAN, length, 7, 10).is_empty());
    }
}
