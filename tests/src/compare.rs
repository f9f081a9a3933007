//! What differs between two views, in lines a reader can act on.

use crate::view::View;

/// One line per difference; empty when the views are equal.
#[must_use]
pub fn differences(before: &View, after: &View) -> Vec<String> {
    let mut found = Vec::new();
    for (name, was) in &before.0 {
        match after.0.get(name) {
            None => found.push(format!("{name}: was {:?}, is gone", shorten(was))),
            Some(is) if is != was => found.extend(lines(name, was, is)),
            Some(_) => {}
        }
    }
    for (name, is) in &after.0 {
        if !before.0.contains_key(name) {
            found.push(format!("{name}: is new: {:?}", shorten(is)));
        }
    }
    found
}

fn lines(name: &str, was: &str, is: &str) -> Vec<String> {
    if !was.contains('\n') && !is.contains('\n') {
        return vec![format!("{name}: was {was:?}, is {is:?}")];
    }
    let (old, new): (Vec<&str>, Vec<&str>) = (was.lines().collect(), is.lines().collect());
    let gone = old.iter().filter(|l| !new.contains(l)).map(|l| format!("{name}: - {l}"));
    let came = new.iter().filter(|l| !old.contains(l)).map(|l| format!("{name}: + {l}"));
    let mut found: Vec<String> = gone.chain(came).collect();
    if found.is_empty() {
        found.push(format!("{name}: same lines in another order or number"));
    }
    found
}

fn shorten(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::maps;

    fn view(text: &str) -> View {
        View([("maps".to_owned(), maps(text.as_bytes()))].into())
    }

    #[test]
    fn neighbours_that_could_be_one_mapping_are_equal_to_one() {
        let one = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nVmFlags: rd wr sd\n";
        let two = "1000-2000 rw-p 00000000 00:00 0 \nVmFlags: rd wr\n2000-3000 rw-p 00000000 00:00 0 \nVmFlags: rd wr\n";
        assert!(differences(&view(one), &view(two)).is_empty());
    }

    #[test]
    fn file_mappings_join_only_at_the_right_offset() {
        let one = "1000-3000 r--p 00000000 08:01 77 /f\nVmFlags: rd\n";
        let two = "1000-2000 r--p 00000000 08:01 77 /f\nVmFlags: rd\n2000-3000 r--p 00005000 08:01 77 /f\nVmFlags: rd\n";
        assert_eq!(differences(&view(one), &view(two)).len(), 3);
    }
}
