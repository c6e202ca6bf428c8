//! How many bytes a second may be sent, and when: `20MiB/s`, `Mon-Fri 09:00-18:00 5MiB/s`. Pure.

use std::{fmt, str::FromStr};

use bytesize::ByteSize;
use jiff::civil::{DateTime, Weekday};

/// The least that can be asked for: with less, servers take an upload for one that stands still.
const LEAST_RATE: u64 = 1 << 10;

const DAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

/// Limits for different times. Of those that are in force at a moment, the last one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timetable(Vec<Limit>);

/// A limit, and when it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// In the week from Monday on; a span of hours beyond midnight belongs to the day it begins on.
    days: [bool; 7],
    /// From, to, in minutes of the day; `None`: all day. `to` is before `from` if midnight is
    /// between them.
    hours: Option<(u16, u16)>,
    /// Bytes a second; `None`: without a limit.
    rate: Option<u64>,
    /// As it was written.
    text: String,
}

/// Why a text is no limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no limit: {reason}; write 20MiB/s, none, or Mon-Fri 09:00-18:00 5MiB/s")]
pub struct BadLimit {
    text: String,
    reason: String,
}

impl Timetable {
    /// These, in this order.
    pub fn new(limits: Vec<Limit>) -> Self {
        Self(limits)
    }

    /// Bytes a second at this time on the clock of the wall; `None`: without a limit.
    pub fn rate(&self, now: DateTime) -> Option<u64> {
        self.0.iter().rev().find(|limit| limit.is_in_force(now)).and_then(|limit| limit.rate)
    }

    /// Whether there is never a limit.
    pub fn is_unlimited(&self) -> bool {
        self.0.iter().all(|limit| limit.rate.is_none())
    }
}

impl fmt::Display for Timetable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let texts: Vec<_> = self.0.iter().map(|limit| limit.text.as_str()).collect();
        f.write_str(&texts.join("; "))
    }
}

/// Limits with `;` between them.
impl FromStr for Timetable {
    type Err = BadLimit;

    fn from_str(text: &str) -> Result<Self, BadLimit> {
        text.split(';').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl Limit {
    fn is_in_force(&self, now: DateTime) -> bool {
        let on = |day: Weekday| self.days[day.to_monday_zero_offset() as usize];
        let today = now.date().weekday();
        let time =
            u16::from(now.hour().unsigned_abs()) * 60 + u16::from(now.minute().unsigned_abs());
        match self.hours {
            None => on(today),
            Some((from, to)) if from < to => on(today) && from <= time && time < to,
            Some((from, to)) => (on(today) && from <= time) || (on(today.previous()) && time < to),
        }
    }
}

impl FromStr for Limit {
    type Err = BadLimit;

    fn from_str(text: &str) -> Result<Self, BadLimit> {
        let text = text.trim();
        let bad = |reason: String| BadLimit { text: text.to_owned(), reason };
        let (mut days, mut hours) = (None, None);
        let mut words = text.split_whitespace().peekable();
        while let Some(word) = words.peek() {
            if days.is_none() && hours.is_none() && word.starts_with(char::is_alphabetic) {
                match parse_days(word).map_err(bad)? {
                    Some(some) => days = Some(some),
                    None => break,
                }
            } else if hours.is_none() && word.contains(':') {
                hours = Some(parse_hours(word).map_err(bad)?);
            } else {
                break;
            }
            words.next();
        }
        let rate = parse_rate(&words.collect::<String>()).map_err(bad)?;
        Ok(Self { days: days.unwrap_or([true; 7]), hours, rate, text: text.to_owned() })
    }
}

/// `Mon-Fri`, `Sat,Sun`, `fri-mon`; `None` if this does not begin with a day.
fn parse_days(word: &str) -> Result<Option<[bool; 7]>, String> {
    let number = |name: &str| {
        let name = name.to_lowercase();
        DAYS.iter().position(|(day, _)| *day == name)
    };
    if word.get(..3).and_then(number).is_none() {
        return Ok(None);
    }
    let mut days = [false; 7];
    for part in word.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(format!("{part} is no day, and no days like Mon-Fri"));
        };
        // Over the end of the week if it has to.
        let count = (last + 7 - first) % 7;
        for offset in 0..=count {
            days[(first + offset) % 7] = true;
        }
    }
    Ok(Some(days))
}

/// `09:00-18:00`, `22:00-06:00`, in minutes; 24:00 is the end of a day.
fn parse_hours(word: &str) -> Result<(u16, u16), String> {
    const DAY: u16 = 24 * 60;
    let time = |text: &str| -> Option<u16> {
        let (hour, minute) = text.split_once(':')?;
        let digits = |text: &str| {
            let plain = matches!(text.len(), 1 | 2) && text.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| text.parse::<u16>().ok()).flatten()
        };
        let (hour, minute) = (digits(hour)?, digits(minute)?);
        Some(hour * 60 + minute).filter(|time| minute < 60 && *time <= DAY)
    };
    let both = word.split_once('-').and_then(|(from, to)| Some((time(from)?, time(to)?)));
    match both {
        Some((0, DAY)) => Ok((0, DAY)),
        Some((from, to)) if from % DAY == to % DAY => Err(format!("{word} has no length")),
        Some(both) => Ok(both),
        None => Err(format!("{word} are no hours like 09:00-18:00")),
    }
}

/// `20MiB/s`, `20MiB`, `none`.
fn parse_rate(text: &str) -> Result<Option<u64>, String> {
    if text.is_empty() {
        return Err("there is no rate".into());
    }
    if text.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let size = text.strip_suffix("/s").unwrap_or(text);
    match size.parse::<ByteSize>().map(|size| size.as_u64()) {
        Ok(LEAST_RATE..) => Ok(size.parse::<ByteSize>().ok().map(|size| size.as_u64())),
        Ok(_) => Err(format!("{text} is less than 1KiB/s")),
        Err(_) => Err(format!("{text} is no rate")),
    }
}

#[cfg(test)]
mod tests {
    use jiff::{ToSpan, civil::datetime};
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn table(texts: &[&str]) -> Timetable {
        Timetable::new(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    /// In a week whose Monday is the 1st of June 2026.
    fn at(day: i8, hour: i8, minute: i8) -> DateTime {
        datetime(2026, 6, day, hour, minute, 0, 0)
    }

    #[test]
    fn the_last_entry_in_force_counts() {
        let table = table(&["20MiB/s", "Mon-Fri 09:00-18:00 5MiB/s", "Wed 12:00-13:00 none"]);
        for (time, expected) in [
            (at(1, 8, 59), Some(20 * MIB)),
            (at(1, 9, 0), Some(5 * MIB)),
            (at(5, 17, 59), Some(5 * MIB)),
            (at(5, 18, 0), Some(20 * MIB)),
            (at(6, 12, 0), Some(20 * MIB)),
            (at(3, 12, 30), None),
            (at(3, 13, 0), Some(5 * MIB)),
        ] {
            assert_eq!(table.rate(time), expected, "{time}");
        }
        assert!(!table.is_unlimited());
    }

    #[test]
    fn a_night_belongs_to_the_day_it_begins_on() {
        let table = table(&["Fri 22:00-06:00 1MiB/s"]);
        for (time, expected) in [
            (at(5, 21, 59), None),
            (at(5, 22, 0), Some(MIB)),
            (at(6, 5, 59), Some(MIB)),
            (at(6, 6, 0), None),
            (at(5, 5, 0), None),
            (at(6, 23, 0), None),
        ] {
            assert_eq!(table.rate(time), expected, "{time}");
        }
        let all_day = self::table(&["Sat-Mon 1MiB", "Tue,thu 0:00-24:00 2MiB/s"]);
        let rates = (1..=7).map(|day| all_day.rate(at(day, 12, 0)).unwrap_or(0) / MIB);
        assert_eq!(rates.collect::<Vec<_>>(), [1, 2, 0, 2, 0, 1, 1]);
    }

    #[test]
    fn what_is_written_is_understood_or_refused_with_the_reason() {
        let rate = |text: &str| text.parse::<Limit>().unwrap().rate;
        assert_eq!(rate("20MiB/s"), Some(20 * MIB));
        assert_eq!(rate(" 20 MiB/s "), Some(20 * MIB));
        assert_eq!(rate("500kB/s"), Some(500_000));
        assert_eq!(rate("None"), None);
        for (bad, says) in [
            ("", "no rate"),
            ("fast", "no rate"),
            ("0", "less than"),
            ("12B/s", "less than"),
            ("-5MiB/s", "no rate"),
            ("Mon", "no rate"),
            ("Mon-Fry 5MiB/s", "Mon-Fry is no day"),
            ("Monday 5MiB/s", "Monday is no day"),
            ("09:00 5MiB/s", "no hours"),
            ("09:00-09:00 5MiB/s", "no length"),
            ("9:00-25:00 5MiB/s", "no hours"),
            ("9:60-10:00 5MiB/s", "no hours"),
            ("9:00-24:01 5MiB/s", "no hours"),
            ("24:00-0:00 5MiB/s", "no length"),
            ("9:00-+8:00 5MiB/s", "no hours"),
            ("9:00-10:00 Mon 5MiB/s", "no rate"),
        ] {
            let error = bad.parse::<Limit>().unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("write 20MiB/s"), "{bad}: {error}");
        }
        let both: Timetable = "20MiB/s; Sat,Sun none".parse().unwrap();
        assert_eq!(both, table(&["20MiB/s", "Sat,Sun none"]));
        assert_eq!(both.to_string(), "20MiB/s; Sat,Sun none");
        assert_eq!(Timetable::default().to_string(), "none");
        assert!("none".parse::<Timetable>().unwrap().is_unlimited());
    }

    proptest! {
        /// A span of hours covers as much of a week as it says, wherever it lies.
        #[test]
        fn hours_cover_what_they_say(from in 0u32..1440, length in 1u32..1440, days in 1u8..128) {
            let clock = |minute: u32| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
            let names: Vec<_> =
                DAYS.iter().enumerate().filter(|(n, _)| days >> n & 1 == 1).map(|(_, d)| d.0).collect();
            let text = format!("{} {}-{} 1MiB/s", names.join(","), clock(from), clock(from + length));
            let table = Timetable::new(vec![text.parse().unwrap()]);
            let minutes = (0..7 * 1440i64)
                .filter(|minute| table.rate(at(1, 0, 0) + minute.minutes()).is_some());
            // Spans of one entry do not overlap: each is shorter than a day.
            prop_assert_eq!(minutes.count() as u32, length * days.count_ones());
        }

        /// No text is a panic, and what is understood is read back as it was.
        #[test]
        fn any_text_is_read_or_refused(text in "([A-Za-z]{3}[-,]?){0,3} ?[0-9:;-]{0,11} ?[0-9]{0,4}[kMGi]{0,2}B?(/s)?") {
            if let Ok(table) = text.parse::<Timetable>() {
                prop_assert_eq!(&table.to_string().parse::<Timetable>().unwrap(), &table);
            }
        }
    }
}
