//! Syscall programs: arrays of system calls that a task runs in one go.

use crate::code::{DESC_SIZE, MAY_FAIL};

/// One argument of a call.
#[derive(Clone, Debug)]
pub enum Arg {
    /// A number, or an address in the task.
    Value(u64),
    /// The address of a copy of these bytes in the task.
    In(Vec<u8>),
    /// The address of a copy of these bytes in which some words point into the copy itself:
    /// (offset of the word, offset it points to).
    Linked(Vec<u8>, Vec<(usize, usize)>),
    /// The same, read back afterwards.
    LinkedOut(Vec<u8>, Vec<(usize, usize)>),
    /// The address of this many zeroed bytes, read back afterwards.
    Out(usize),
    /// The address of a copy of these bytes, read back afterwards.
    InOut(Vec<u8>),
    /// The result of an earlier call of the same program.
    Result(usize),
    /// The address of the first output of an earlier call, in a program that fits a bay.
    Output(usize),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Arg::Value(value)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Arg::Value(i64::from(value) as u64)
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Arg::Value(u64::from(value))
    }
}

/// One system call of a program.
#[derive(Clone, Debug)]
pub struct Call {
    /// Number.
    nr: i64,
    /// Up to six arguments.
    args: Vec<Arg>,
    /// A failure is a result like others.
    may_fail: bool,
    /// What it is for, in error messages.
    what: &'static str,
    /// The address, descriptor or number it is about.
    object: u64,
    /// How often it is made once more, each time with a first argument that is one more.
    again: u64,
}

/// What a call gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Return value, -errno on failure.
    pub result: i64,
    /// Contents of its `Out`, `InOut` and `LinkedOut` arguments, in order.
    pub out: Vec<Vec<u8>>,
}

impl Outcome {
    /// The `index`th output, or nothing.
    pub fn bytes(&self, index: usize) -> &[u8] {
        self.out.get(index).map_or(&[], Vec::as_slice)
    }

    /// The little-endian word at byte `at` of the first output (0 when absent).
    pub fn word(&self, at: usize) -> u64 {
        let bytes = self.bytes(0).get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_le_bytes)
    }

    /// Whether the call succeeded.
    pub fn ok(&self) -> bool {
        !(-4095..0).contains(&self.result)
    }
}

/// A sequence of system calls.
#[derive(Clone, Debug, Default)]
pub struct Program {
    calls: Vec<Call>,
    whole: bool,
}

impl Program {
    /// An empty program.
    pub fn new() -> Self {
        Program::default()
    }

    /// An empty program that runs in one go: also to its end when we die meanwhile. It is an error if it does not fit a
    /// bay.
    pub fn whole() -> Self {
        Program { whole: true, ..Program::default() }
    }

    /// Whether it runs in one go.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Calls in the program.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Appends a call that must succeed. `what` and `object` name it in errors. Returns its index.
    pub fn call<const N: usize>(
        &mut self,
        what: &'static str,
        object: u64,
        nr: i64,
        args: [Arg; N],
    ) -> usize {
        const { assert!(N <= 6, "a system call has at most six arguments") };
        self.calls.push(Call { nr, args: args.into(), may_fail: false, what, object, again: 0 });
        self.calls.len() - 1
    }

    /// Appends a call that must succeed for each of `count` numbers from `first` on, its first argument; `others` follow it.
    /// Its result is that of the last one; an error names the first number. Returns its index.
    pub fn call_each<const N: usize>(
        &mut self,
        what: &'static str,
        first: u64,
        count: u64,
        nr: i64,
        others: [Arg; N],
    ) -> usize {
        const { assert!(N <= 5, "a system call has at most six arguments") };
        let args = [Arg::Value(first)].into_iter().chain(others).collect();
        let again = count.saturating_sub(1);
        self.calls.push(Call { nr, args, may_fail: false, what, object: first, again });
        self.calls.len() - 1
    }

    /// Appends a call whose failure is an [`Outcome`] like any other. Returns its index.
    pub fn try_call<const N: usize>(&mut self, what: &'static str, nr: i64, args: [Arg; N]) -> usize {
        let index = self.call(what, 0, nr, args);
        if let Some(call) = self.calls.last_mut() {
            call.may_fail = true;
        }
        index
    }

    /// What call `index` was for, and on what.
    pub(crate) fn label(&self, index: usize) -> (&'static str, u64) {
        self.calls.get(index).map_or(("system call", 0), |c| (c.what, c.object))
    }
}

/// As much of a program as fits a bay, laid out for it.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Descriptors, then data.
    pub(crate) bytes: Vec<u8>,
    /// Calls in it.
    pub(crate) count: usize,
    /// Per call, the (offset in `bytes`, length) of each output.
    outputs: Vec<Vec<(usize, usize)>>,
}

/// Bytes an argument's data occupies.
fn data_len(arg: &Arg) -> usize {
    match arg {
        Arg::In(b) | Arg::InOut(b) | Arg::Linked(b, _) | Arg::LinkedOut(b, _) => b.len().next_multiple_of(16),
        Arg::Out(n) => n.next_multiple_of(16),
        Arg::Value(_) | Arg::Result(_) | Arg::Output(_) => 0,
    }
}

impl Batch {
    /// Lays out calls of `program` from `first` on in `room` bytes at `address`; `results` are
    /// those of the calls before `first`. `Err` is the size of a call that can never fit.
    pub(crate) fn build(
        program: &Program,
        first: usize,
        results: &[Outcome],
        address: u64,
        room: usize,
    ) -> Result<Batch, usize> {
        let rest = program.calls.get(first..).unwrap_or(&[]);
        let mut size = 0;
        let mut count = 0;
        for call in rest {
            let need = DESC_SIZE + call.args.iter().map(data_len).sum::<usize>();
            if size + need > room {
                break;
            }
            size += need;
            count += 1;
        }
        if count == 0 && !rest.is_empty() {
            return Err(rest.first().map_or(0, |c| DESC_SIZE + c.args.iter().map(data_len).sum::<usize>()));
        }
        let mut batch = Batch { bytes: Vec::with_capacity(size), count, outputs: Vec::with_capacity(count) };
        let mut data = Vec::new();
        for call in rest.iter().take(count) {
            batch.lay(call, first, results, address, count * DESC_SIZE, &mut data);
        }
        batch.bytes.append(&mut data);
        Ok(batch)
    }

    /// Appends one descriptor, and its data to `data`, which will begin at `data_at`.
    fn lay(
        &mut self,
        call: &Call,
        first: usize,
        results: &[Outcome],
        address: u64,
        data_at: usize,
        data: &mut Vec<u8>,
    ) {
        let mut flags = if call.may_fail { MAY_FAIL } else { 0 };
        let mut words = [0u64; 6];
        let mut outputs = Vec::new();
        for (i, (arg, word)) in call.args.iter().zip(&mut words).enumerate() {
            let at = data_at + data.len();
            *word = match arg {
                Arg::Value(v) => *v,
                Arg::Result(index) if *index < first => results.get(*index).map_or(0, |o| o.result as u64),
                Arg::Result(index) => {
                    flags |= 1 << i;
                    ((index - first) * DESC_SIZE) as u64
                }
                Arg::Output(index) => {
                    let call = index.checked_sub(first).and_then(|call| self.outputs.get(call));
                    call.and_then(|outputs| outputs.first()).map_or(0, |(at, _)| address + *at as u64)
                }
                Arg::In(_) | Arg::Linked(..) | Arg::LinkedOut(..) | Arg::Out(_) | Arg::InOut(_) => {
                    address + at as u64
                }
            };
            match arg {
                Arg::In(b) => data.extend_from_slice(b),
                Arg::Linked(b, links) | Arg::LinkedOut(b, links) => {
                    let begin = data.len();
                    if matches!(arg, Arg::LinkedOut(..)) {
                        outputs.push((at, b.len()));
                    }
                    data.extend_from_slice(b);
                    for &(word, target) in links {
                        let pointer = address + (at + target) as u64;
                        if let Some(place) = data.get_mut(begin + word..begin + word + 8) {
                            place.copy_from_slice(&pointer.to_le_bytes());
                        }
                    }
                }
                Arg::InOut(b) => {
                    outputs.push((at, b.len()));
                    data.extend_from_slice(b);
                }
                Arg::Out(n) => {
                    outputs.push((at, *n));
                    data.resize(data.len() + n, 0);
                }
                Arg::Value(_) | Arg::Result(_) | Arg::Output(_) => {}
            }
            data.resize(data.len().next_multiple_of(16), 0);
        }
        self.bytes.extend_from_slice(&(call.nr as u64).to_le_bytes());
        for word in words.into_iter().chain([0, flags, call.again]) {
            self.bytes.extend_from_slice(&word.to_le_bytes());
        }
        self.outputs.push(outputs);
    }

    /// Whether anything but results must be read back.
    pub(crate) fn has_outputs(&self) -> bool {
        self.outputs.iter().any(|o| !o.is_empty())
    }

    /// The outcomes, from the bay's bytes after the run.
    pub(crate) fn outcomes(&self, after: &[u8]) -> Vec<Outcome> {
        let word =
            |at: usize| after.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, i64::from_le_bytes);
        let outcome = |(i, spans): (usize, &Vec<(usize, usize)>)| Outcome {
            result: word(i * DESC_SIZE + 56),
            out: spans.iter().map(|&(at, len)| after.get(at..at + len).unwrap_or(&[]).to_vec()).collect(),
        };
        self.outputs.iter().enumerate().map(outcome).collect()
    }
}
