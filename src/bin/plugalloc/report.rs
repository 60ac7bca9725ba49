//! What is shown of a replay: a row of a table for people, an object of JSON for programs.

use comfy_table::{CellAlignment, Table, presets};
use plugalloc::Bytes;
use plugalloc::units::format_bytes;
use serde_json::{Value, json};

/// The numbers of one trace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// The trace's name.
    pub(crate) trace: String,
    /// On which device, through which face and with which options it was replayed.
    pub(crate) device: String,
    pub(crate) via: String,
    pub(crate) config: String,
    /// The memory that the device has, in bytes.
    pub(crate) capacity: Bytes,
    /// How many events were replayed.
    pub(crate) events: usize,
    pub(crate) allocations: usize,
    pub(crate) streams: usize,
    /// The most bytes asked for at any one time.
    pub(crate) live_peak: Bytes,
    /// The most bytes that the device had given out at any one time.
    pub(crate) reserved_peak: Bytes,
    pub(crate) ns_per_event: f64,
    pub(crate) driver_calls: u64,
    pub(crate) driver_ms: f64,
    /// How many allocations did not fit.
    pub(crate) ooms: u64,
    /// How long the program took that the trace was recorded from.
    pub(crate) duration_ms: f64,
    /// What the search for the least capacity found, where it was asked for and found any.
    pub(crate) least: Option<Least>,
    /// Whether the search was asked for.
    pub(crate) least_wanted: bool,
    /// What went wrong.
    pub(crate) problems: Vec<String>,
}

/// The least capacity in which a trace completes, and the price.
#[derive(Clone, Debug)]
pub(crate) struct Least {
    pub(crate) capacity: Bytes,
    pub(crate) driver_calls: u64,
    pub(crate) driver_ms: f64,
}

impl Report {
    /// True where every event was replayed and everything was given back.
    pub(crate) fn is_complete(&self) -> bool {
        self.ooms == 0 && self.problems.is_empty()
    }

    /// One line of JSON. What was not found is null.
    pub(crate) fn to_json(&self) -> String {
        let mut object = json!({
            "trace": self.trace,
            "device": self.device,
            "via": self.via,
            "config": self.config,
            "capacity": self.capacity,
            "events": self.events,
            "allocations": self.allocations,
            "streams": self.streams,
            "live_peak": self.live_peak,
            "reserved_peak": self.reserved_peak,
            "reserved_ratio": ratio(self.reserved_peak, self.live_peak),
            "ns_per_event": rounded(self.ns_per_event, 10.0),
            "driver_calls": self.driver_calls,
            "driver_ms": rounded(self.driver_ms, 1000.0),
            "ooms": self.ooms,
            "duration_ms": rounded(self.duration_ms, 1000.0),
        });
        if let (true, Value::Object(fields)) = (self.least_wanted, &mut object) {
            let least = self.least.as_ref();
            let ratio = least.and_then(|least| ratio(least.capacity, self.live_peak));
            let ms = least.map(|least| rounded(least.driver_ms, 1000.0));
            let mut insert = |name: &str, value| fields.insert(name.to_owned(), value);
            insert("least_capacity", json!(least.map(|least| least.capacity)));
            insert("least_ratio", json!(ratio));
            insert("driver_ms_at_least", json!(ms));
            insert("driver_calls_at_least", json!(least.map(|least| least.driver_calls)));
        }
        object.to_string()
    }

    fn row(&self) -> Vec<String> {
        let mut row = vec![
            self.trace.clone(),
            self.events.to_string(),
            format_bytes(self.live_peak),
            format_bytes(self.reserved_peak),
            show_ratio(self.reserved_peak, self.live_peak),
            format!("{:.1}", self.ns_per_event),
            self.driver_calls.to_string(),
            format!("{:.2}", self.driver_ms),
            self.ooms.to_string(),
        ];
        if self.least_wanted {
            row.extend(match &self.least {
                Some(least) => [
                    format_bytes(least.capacity),
                    show_ratio(least.capacity, self.live_peak),
                    least.driver_calls.to_string(),
                    format!("{:.2}", least.driver_ms),
                ],
                None => std::array::from_fn(|_| "-".to_owned()),
            });
        }
        row
    }
}

/// The table of all reports.
pub(crate) fn table(reports: &[Report], least: bool) -> String {
    let mut header = vec![
        "trace",
        "events",
        "live peak",
        "reserved peak",
        "ratio",
        "ns/event",
        "driver calls",
        "driver ms",
        "OOMs",
    ];
    if least {
        header.extend(["least capacity", "least ratio", "calls at least", "ms at least"]);
    }
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    table.add_rows(reports.iter().map(Report::row));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// To four decimals; nothing where there is nothing to compare with.
fn ratio(bytes: Bytes, live: Bytes) -> Option<f64> {
    (live > 0).then(|| rounded(bytes as f64 / live as f64, 1e4))
}

fn show_ratio(bytes: Bytes, live: Bytes) -> String {
    ratio(bytes, live).map_or("-".to_owned(), |ratio| format!("{ratio:.4}"))
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            trace: "a \"quoted\" name".to_owned(),
            live_peak: 1000,
            reserved_peak: 1500,
            ns_per_event: 12.345,
            ..Report::default()
        }
    }

    #[test]
    fn json_holds_every_field() {
        let line = report().to_json();
        assert!(!line.contains('\n'));
        let value: Value = serde_json::from_str(&line).unwrap();
        for field in [
            "trace",
            "events",
            "allocations",
            "streams",
            "live_peak",
            "reserved_peak",
            "reserved_ratio",
            "ns_per_event",
            "driver_calls",
            "driver_ms",
            "ooms",
            "duration_ms",
        ] {
            assert!(!value[field].is_null(), "{field}");
        }
        assert_eq!(value["reserved_ratio"], 1.5);
        assert_eq!(value["ns_per_event"], 12.3);
        assert_eq!(value.get("least_capacity"), None);
    }

    #[test]
    fn the_least_capacity_is_shown_where_it_was_asked_for() {
        let mut report = Report { least_wanted: true, ..report() };
        let value: Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(value["least_capacity"], Value::Null);
        assert_eq!(report.row().len(), 13);
        report.least = Some(Least { capacity: 1100, driver_calls: 7, driver_ms: 0.5 });
        let value: Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!((&value["least_capacity"], &value["least_ratio"]), (&json!(1100), &json!(1.1)));
        assert_eq!(value["driver_calls_at_least"], 7);
        assert!(table(&[report], true).contains("least capacity"));
    }

    #[test]
    fn nothing_live_has_no_ratio() {
        let report = Report { live_peak: 0, ..report() };
        let value: Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(value["reserved_ratio"], Value::Null);
    }
}
