//! What an engine bench found, for programs and for people.

use std::fmt::Write;

use serde::Serialize;

use crate::bench::Machine;

/// A whole run.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) model: String,
    pub(crate) dtype: &'static str,
    pub(crate) threads: usize,
    pub(crate) machine: Machine,
    /// Tokens in the cache.
    pub(crate) prefix: u32,
    pub(crate) repeats: u32,
    /// Bytes of matmul weights that one step reads.
    pub(crate) weight_bytes: usize,
    /// Read bandwidth of the same number of threads, 10^9 bytes a second.
    pub(crate) bandwidth_gb_s: f64,
    /// f32 arithmetic of the same number of threads, 10^9 operations a second.
    pub(crate) peak_gflops: f64,
    /// Time to read the weights once.
    pub(crate) floor_ms: f64,
    /// Share of the layers that the stock matmul was timed on; its times are scaled up to all of them.
    pub(crate) stock_share: Option<f64>,
    pub(crate) rows: Vec<RowReport>,
}

/// Steps of one row count; times are medians in milliseconds.
#[derive(Serialize)]
pub(crate) struct RowReport {
    pub(crate) rows: u16,
    pub(crate) step_ms: f64,
    /// The stock matmuls alone.
    pub(crate) stock_candle_ms: Option<f64>,
    pub(crate) over_floor: f64,
    /// The floor, or the arithmetic at the measured peak, whichever is longer.
    pub(crate) roofline_ms: f64,
    pub(crate) over_roofline: f64,
}

impl Report {
    /// The table, with a heading that says what it was taken on.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{}: {}, {} thread(s), {:.1} MiB of weights, prefix {}; {}, {} cores",
            self.model,
            self.dtype,
            self.threads,
            self.weight_bytes as f64 / f64::from(1 << 20),
            self.prefix,
            self.machine.cpu,
            self.machine.cores
        );
        let _ = writeln!(
            out,
            "measured: {:.1} GB/s read, {:.0} GFLOP/s; reading the weights once takes {:.3} ms",
            self.bandwidth_gb_s, self.peak_gflops, self.floor_ms
        );
        if let Some(share) = self.stock_share.filter(|share| *share < 1.0) {
            let _ = writeln!(
                out,
                "stock candle is timed on {:.0} % of the layers and scaled up",
                share * 100.0
            );
        }
        let _ = writeln!(
            out,
            "{:>5} {:>10} {:>9} {:>11} {:>12} {:>14} {:>16}",
            "rows",
            "step ms",
            "x 1st",
            "over floor",
            "roofline ms",
            "over roofline",
            "stock candle ms"
        );
        let first = self.rows.first().map_or(f64::NAN, |row| row.step_ms);
        for row in &self.rows {
            let stock = row
                .stock_candle_ms
                .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.3}"));
            let _ = writeln!(
                out,
                "{:>5} {:>10.3} {:>9.2} {:>11.2} {:>12.3} {:>14.2} {stock:>16}",
                row.rows,
                row.step_ms,
                row.step_ms / first,
                row.over_floor,
                row.roofline_ms,
                row.over_roofline
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_columns_are_as_promised() {
        let row = |rows, step_ms| RowReport {
            rows,
            step_ms,
            stock_candle_ms: None,
            over_floor: step_ms / 2.0,
            roofline_ms: 2.0,
            over_roofline: step_ms / 2.0,
        };
        let report = Report {
            model: "deep".to_owned(),
            dtype: "f32",
            threads: 1,
            machine: Machine {
                cpu: "a cpu".to_owned(),
                cores: 2,
            },
            prefix: 64,
            repeats: 3,
            weight_bytes: 1 << 20,
            bandwidth_gb_s: 10.0,
            peak_gflops: 100.0,
            floor_ms: 2.0,
            stock_share: None,
            rows: vec![row(1, 2.0), row(8, 3.0)],
        };
        let table = report.table();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(
            lines[4].contains("1.50"),
            "8 rows cost 1.5 times one: {}",
            lines[4]
        );
        let json = serde_json::to_value(&report).unwrap();
        for field in [
            "model",
            "dtype",
            "threads",
            "weight_bytes",
            "bandwidth_gb_s",
            "floor_ms",
        ] {
            assert!(!json[field].is_null(), "{field}");
        }
        assert_eq!(
            (&json["rows"][1]["rows"], &json["rows"][1]["step_ms"]),
            (&8.into(), &3.0.into())
        );
    }
}
