//! Holds docs/image-format.md to the code: the table of records, and a table of members under
//! each wire structure's heading.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use ckpt_image::record::{self, Member, TYPES};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/image-format.md");

/// The structures that are parts of others.
const PARTS: &[(&str, &[Member])] = &[
    ("Regs", record::Regs::MEMBERS),
    ("RestartBlock", record::RestartBlock::MEMBERS),
    ("FileDesc", record::FileDesc::MEMBERS),
    ("FileLock", record::FileLock::MEMBERS),
    ("Mqueue", record::Mqueue::MEMBERS),
    ("UnixSocket", record::UnixSocket::MEMBERS),
    ("UnixMessage", record::UnixMessage::MEMBERS),
    ("ExternalName", record::ExternalName::MEMBERS),
    ("PipePart", record::PipePart::MEMBERS),
    ("Memfd", record::Memfd::MEMBERS),
    ("ProcFile", record::ProcFile::MEMBERS),
    ("Tty", record::Tty::MEMBERS),
    ("Pty", record::Pty::MEMBERS),
    ("Eventfd", record::Eventfd::MEMBERS),
    ("EpollEntry", record::EpollEntry::MEMBERS),
    ("Signalfd", record::Signalfd::MEMBERS),
    ("Timerfd", record::Timerfd::MEMBERS),
    ("Pidfd", record::Pidfd::MEMBERS),
    ("InotifyWatch", record::InotifyWatch::MEMBERS),
    ("Run", record::Run::MEMBERS),
    ("SigAction", record::SigAction::MEMBERS),
    ("PidLevel", record::PidLevel::MEMBERS),
    ("PosixTimer", record::PosixTimer::MEMBERS),
];

fn row(line: &str) -> Option<Vec<String>> {
    let inner = line.strip_prefix("| ")?.strip_suffix('|')?;
    Some(inner.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect())
}

/// Rows of the tables between a heading and the next.
fn section(text: &str, heading: &str) -> Vec<Vec<String>> {
    let lines = text.lines().skip_while(|line| *line != heading).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('#'));
    lines.filter_map(row).filter(|row| row[0].parse::<u32>().is_ok()).collect()
}

#[test]
fn records() {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let expected = TYPES.iter().map(|known| {
        let cells = [known.number.to_string(), known.name.to_owned(), known.fixed_len.to_string()];
        let fields = if known.fields.is_empty() { "-".to_owned() } else { known.fields.join(", ") };
        cells.into_iter().chain([fields]).collect::<Vec<_>>()
    });
    let documented = section(&text, "## Records").into_iter().map(|row| row[..4].to_vec());
    assert_eq!(documented.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
}

#[test]
fn members() {
    let text = std::fs::read_to_string(DOCUMENT).unwrap();
    let known =
        TYPES.iter().map(|known| (known.name, known.members)).filter(|(_, members)| !members.is_empty());
    for (name, members) in known.chain(PARTS.iter().copied()) {
        let expected =
            members.iter().map(|(name, offset, size)| [offset.to_string(), size.to_string(), (*name).into()]);
        let documented = section(&text, &format!("### {name}"));
        let documented = documented.into_iter().map(|row| [row[0].clone(), row[1].clone(), row[2].clone()]);
        assert_eq!(documented.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{name}");
    }
}
