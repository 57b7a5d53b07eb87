//! Numbers and times for people.

/// `12,345,678`
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1234`, `12.3k`, `4.5M`
pub fn short(x: f64) -> String {
    let scaled = |unit: f64, name: &str| format!("{}{name}", three_digits(x / unit));
    match x.abs() {
        a if !a.is_finite() => "–".to_owned(),
        a if a < 9_999.5 => three_digits(x),
        a if a < 999_500.0 => scaled(1e3, "k"),
        a if a < 999_500_000.0 => scaled(1e6, "M"),
        _ => scaled(1e9, "G"),
    }
}

fn three_digits(x: f64) -> String {
    let text = match x.abs() {
        a if a >= 99.95 || a.fract() == 0.0 => return format!("{x:.0}"),
        a if a < 0.0995 => return format!("{x:.1e}"),
        a if a >= 9.995 => format!("{x:.1}"),
        _ => format!("{x:.2}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A perplexity: `12.34`, `1,234`, `5.1e9`
pub fn perplexity(x: f64) -> String {
    match x {
        x if !x.is_finite() => "not finite".to_owned(),
        x if x < 100.0 => format!("{x:.2}"),
        x if x < 1000.0 => format!("{x:.1}"),
        x if x < 1e6 => thousands(x.round() as u64),
        _ => format!("{x:.1e}"),
    }
}

/// `48 s`, `12:05`, `3:07:12`, `2 d 04:10`
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".to_owned();
    }
    let s = seconds.round() as u64;
    match s {
        0..60 if seconds < 10.0 => format!("{seconds:.1} s"),
        0..60 => format!("{s} s"),
        60..3600 => format!("{}:{:02}", s / 60, s % 60),
        3600..86_400 => format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60),
        _ => format!("{} d {:02}:{:02}", s / 86_400, s / 3600 % 24, s / 60 % 60),
    }
}

/// Binary units: `1.42 GiB`
pub fn memory(len_bytes: u64) -> String {
    let mib = len_bytes as f64 / 1_048_576.0;
    if mib < 1024.0 {
        format!("{mib:.0} MiB")
    } else {
        format!("{:.2} GiB", mib / 1024.0)
    }
}

/// `2026-03-01 14:05`, in UTC.
pub fn date(unix_seconds: f64) -> String {
    let s = unix_seconds.max(0.0) as u64;
    let (year, month, day) = civil((s / 86_400) as i64);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}",
        s / 3600 % 24,
        s / 60 % 60
    )
}

/// Year, month and day of a number of days since 1970 in the Gregorian calendar
/// (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Removes what moves a terminal's cursor or changes its colours; line breaks become `⏎`.
pub fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => '⏎',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let numbers: Vec<_> = [
            0.0,
            3.0,
            0.02,
            12.34,
            999.6,
            1234.0,
            12_345.0,
            4_500_000.0,
            2e10,
        ]
        .map(short)
        .into();
        assert_eq!(
            numbers,
            [
                "0", "3", "2.0e-2", "12.3", "1000", "1234", "12.3k", "4.5M", "20G"
            ]
        );
        let durations = [0.04, 9.5, 48.4, 725.0, 11_232.0, 187_800.0].map(duration);
        assert_eq!(
            durations,
            ["0.0 s", "9.5 s", "48 s", "12:05", "3:07:12", "2 d 04:10"]
        );
        let perplexities = [7.389, 250.04, 49_152.3, 5.1e9, f64::INFINITY].map(perplexity);
        assert_eq!(
            perplexities,
            ["7.39", "250.0", "49,152", "5.1e9", "not finite"]
        );
        assert_eq!(memory(300 << 20), "300 MiB");
        assert_eq!(memory(3 << 29), "1.50 GiB");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // `date -u -d @N +'%F %H:%M'`
        for (seconds, expect) in [
            (0.0, "1970-01-01 00:00"),
            (951_782_399.0, "2000-02-28 23:59"),
            (951_782_400.0, "2000-02-29 00:00"),
            (1_772_323_200.0, "2026-03-01 00:00"),
            (4_107_542_399.0, "2100-02-28 23:59"),
            (4_107_542_400.0, "2100-03-01 00:00"),
        ] {
            assert_eq!(date(seconds), expect);
        }
    }
}
