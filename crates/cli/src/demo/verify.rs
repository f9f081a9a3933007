//! Holds what the program wrote against what it should have written.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::program::{BLOCK, LINKS, Program};
use crate::failure::{Failure, Outcome};

/// Checks `output`, of which the first `before` bytes are from before the checkpoint. Returns the
/// findings as indented lines.
pub(crate) fn check(program: &Program, output: &[u8], before: usize) -> Outcome<String> {
    let text = std::str::from_utf8(output).map_err(|_| Failure::failed("the output is not text"))?;
    let head = text.get(..before).unwrap_or_default();
    if !head.ends_with('\n') || !text.ends_with('\n') {
        return Err(Failure::failed("a line of the output is incomplete"));
    }
    let mut findings = String::new();
    for writer in 1..=program.writers {
        let (last_before, last) = (count(head, writer, None)?, count(text, writer, Some(program.hashes))?);
        if last <= last_before {
            return Err(Failure::failed(format!("thread {writer} wrote nothing after the restart")));
        }
        let next = last_before + 1;
        let _ = writeln!(
            findings,
            "   thread {writer}: lines 1 to {last_before} before the checkpoint, {next} to {last} after the restart; none missing, none twice"
        );
    }
    if program.hashes {
        let steps: usize = lines(text).filter(|line| line.len() == 3).count() * LINKS;
        let _ = writeln!(findings, "   hash chains: {steps} links computed anew here, all the same");
    }
    ends(text, program.hashes)?;
    if program.hashes {
        findings.push_str("   random memory: the same sha256 at its beginning and at its end\n");
    }
    Ok(findings)
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(' ').collect())
}

/// How many lines `writer` wrote, all in order; with `Some(true)` the chain is recomputed as well.
fn count(text: &str, writer: usize, hashes: Option<bool>) -> Outcome<u64> {
    let name = writer.to_string();
    let block: Vec<u8> = (0..=255u8).cycle().take(BLOCK).collect();
    let mut link = Sha256::digest(&name);
    let mut last = 0u64;
    for words in lines(text) {
        let (number, printed) = match words.as_slice() {
            [thread, number] if *thread == name => (number, ""),
            [thread, number, printed] if *thread == name => (number, *printed),
            _ => continue,
        };
        if number.parse() != Ok(last + 1) {
            return Err(Failure::failed(format!(
                "thread {writer}: line {last} is followed by line {number}"
            )));
        }
        last += 1;
        if hashes == Some(true) {
            for _ in 0..LINKS {
                link = Sha256::new().chain_update(link).chain_update(&block).finalize();
            }
            if hex(&link) != printed {
                return Err(Failure::failed(format!("thread {writer}: wrong hash in line {number}")));
            }
        }
    }
    Ok(last)
}

/// One `begin` and one `end`, of the same sum.
fn ends(text: &str, hashes: bool) -> Outcome<()> {
    let all = |word: &str| -> Vec<&str> { text.lines().filter_map(|line| line.strip_prefix(word)).collect() };
    let (begin, end) = (all("begin"), all("end"));
    match (begin.as_slice(), end.as_slice()) {
        ([begin], [end]) if begin == end && (!hashes || begin.len() == 65) => Ok(()),
        ([_], [_]) => {
            Err(Failure::failed("its memory changed: another sha256 at the end than at the beginning"))
        }
        (begin, end) => {
            Err(Failure::failed(format!("it began {} times and ended {} times", begin.len(), end.len())))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::program;

    const GOOD: &str = "begin\n1 1\n1 2\n1 3\nend\n";
    const BEFORE: usize = "begin\n1 1\n".len();

    #[test]
    fn a_continuous_count_passes() {
        let findings = check(&program::choose(true), GOOD.as_bytes(), BEFORE).unwrap();
        assert!(findings.contains("lines 1 to 1 before the checkpoint, 2 to 3 after"), "{findings}");
    }

    #[test]
    fn gaps_repetitions_and_torn_lines_do_not() {
        for bad in [
            "begin\n1 1\n1 3\nend\n",
            "begin\n1 1\n1 1\nend\n",
            "begin\n1 1\nend\n",
            "begin\n1 1\n1 2\n",
            "begin\n1 1\n1 2\nend",
            "begin\n1 1\nbegin\n1 2\nend\n",
            "begin x\n1 1\n1 2\nend y\n",
        ] {
            assert!(check(&program::choose(true), bad.as_bytes(), BEFORE).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_hash_does_not() {
        let text = |link: &str| format!("begin\n1 1 {link}\n");
        let block: Vec<u8> = (0..=255u8).cycle().take(BLOCK).collect();
        let mut link = Sha256::digest("1");
        for _ in 0..LINKS {
            link = Sha256::new().chain_update(link).chain_update(&block).finalize();
        }
        let good = hex(&link);
        assert_eq!(count(&text(&good), 1, Some(true)).unwrap(), 1);
        assert!(count(&text(&good.replace('0', "1")), 1, Some(true)).is_err());
    }
}
