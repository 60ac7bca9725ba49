//! What one worker of the example server does with memory and streams: `examples/cpp_server`, as a
//! list of operations for each request.

use plugalloc::units::Bytes;

use super::Random;

/// Words of a head, and bytes of a word.
const HEAD: u64 = 256;
const WORD: u64 = 4;
const TOKENS_OF_A_PAGE: u64 = 16;
const WIDE: u64 = 4;

/// The model's dimensions, and how much of it is used at once.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) workers: usize,
    /// Of each worker.
    pub(crate) requests: usize,
    pub(crate) layers: usize,
    pub(crate) hidden: u64,
    pub(crate) longest: u64,
    pub(crate) sessions: usize,
    pub(crate) random_shapes: bool,
}

/// A worker's tensor, by number.
pub(crate) type Tensor = u32;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Memory on the work stream, or on that of uploads.
    Take {
        tensor: Tensor,
        bytes: Bytes,
        upload: bool,
    },
    Free(Tensor),
    /// Work that moves so many bytes.
    Launch {
        bytes: Bytes,
        upload: bool,
    },
    /// The tensor of the stream of uploads is the work stream's from here on.
    HandOver(Tensor),
    /// Waits for the work stream.
    Wait,
}

#[derive(Default)]
struct Session {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    batch: u64,
    rows: u64,
    capacity: u64,
    turns: u64,
}

/// A part of the activations.
#[derive(Clone, Copy)]
struct Rows {
    tensor: Tensor,
    rows: u64,
}

/// Writes down what a worker does.
pub(crate) struct Script {
    load: Load,
    random: Random,
    sessions: Vec<Session>,
    vacant: Vec<Tensor>,
    tensors: u32,
    pub(crate) ops: Vec<Op>,
}

impl Script {
    pub(crate) fn new(load: Load, seed: u64) -> Script {
        let random = Random::new(seed);
        let (sessions, vacant, ops) = (Vec::new(), Vec::new(), Vec::new());
        Script { load, random, sessions, vacant, tensors: 0, ops }
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.random.below(high.max(low) - low + 1)
    }

    /// The operations of the next request.
    pub(crate) fn next(&mut self) {
        self.ops.clear();
        let most = self.load.sessions;
        let opens =
            self.sessions.is_empty() || (self.sessions.len() < most && self.between(0, 1) == 0);
        let pick = self.between(0, 1_000_000) as usize;
        let (length, steps) = match self.load.random_shapes {
            true => (0, self.between(0, 4)),
            false => (self.load.longest / if opens { 8 } else { 32 }, 2),
        };
        let number = match opens {
            true => self.sessions.len(),
            false => pick % self.sessions.len(),
        };
        let mut length = length;
        if opens {
            let mut session = Session { batch: 1, turns: 4, ..Session::default() };
            if self.load.random_shapes {
                (session.batch, length) = self.opening();
                session.turns = 0;
                while self.between(0, 99) >= 20 {
                    session.turns += 1;
                }
            }
            self.sessions.push(session);
        } else if self.load.random_shapes {
            length = self.between(1, self.load.longest / 16);
        }
        if most == 0 {
            self.sessions[number].turns = 0;
        }
        let mut session = std::mem::take(&mut self.sessions[number]);
        if session.rows / session.batch + length > 2 * self.load.longest {
            let (batch, turns) = (session.batch, session.turns);
            self.close(session);
            session = Session { batch, turns, ..Session::default() };
        }
        self.run(&mut session, length, steps);
        if session.turns == 0 {
            self.close(session);
            self.sessions.swap_remove(number);
        } else {
            session.turns -= 1;
            self.sessions[number] = session;
        }
    }

    /// Prompts and tokens of each. Most are short chats, some come with a document, a few fill the
    /// context.
    fn opening(&mut self) -> (u64, u64) {
        let longest = self.load.longest;
        match self.between(0, 99) {
            0..65 => {
                let length = self.between((longest / 64).max(1), longest / 8);
                let single = self.between(0, 99) < 60;
                (if single { 1 } else { self.between(2, 8) }, length)
            }
            65..92 => (1, self.between(longest / 8, longest / 2)),
            _ => (1, self.between(longest / 2, longest)),
        }
    }

    fn close(&mut self, session: Session) {
        session.keys.into_iter().chain(session.values).for_each(|tensor| self.free(tensor));
    }

    fn run(&mut self, session: &mut Session, length: u64, steps: u64) {
        let hidden = self.load.hidden;
        let rows = session.batch * length;
        let input = self.take_on(rows * hidden / HEAD, true);
        self.ops.push(Op::Launch { bytes: rows * hidden / HEAD * WORD, upload: true });
        self.ops.push(Op::HandOver(input));
        let mut x = Rows { tensor: self.take(rows * hidden), rows };
        self.launch(rows * hidden);
        self.free(input);
        let result = self.take(hidden);
        self.launch(hidden);
        for step in 0..=steps {
            if step > 0 {
                let first = Rows { tensor: self.take(session.batch * hidden), rows: session.batch };
                self.launch(2 * first.rows * hidden);
                self.free(x.tensor);
                x = first;
            }
            x = self.forward(session, x);
            self.launch(x.rows * hidden);
        }
        for _ in 0..2 * self.load.layers {
            self.launch(session.rows * hidden);
        }
        self.launch(hidden);
        self.ops.push(Op::Wait);
        self.free(x.tensor);
        self.free(result);
    }

    fn forward(&mut self, session: &mut Session, mut x: Rows) -> Rows {
        let before = session.rows;
        self.make_room(session, before + x.rows);
        for layer in 0..self.load.layers {
            session.rows = before;
            let y = self.attend(session, layer, x);
            self.free(x.tensor);
            x = self.feed_forward(y);
            self.free(y.tensor);
        }
        x
    }

    fn make_room(&mut self, session: &mut Session, rows: u64) {
        if rows <= session.capacity {
            return;
        }
        let capacity = rows.next_multiple_of(TOKENS_OF_A_PAGE * session.batch);
        let (hidden, first) = (self.load.hidden, session.keys.is_empty());
        for layer in 0..self.load.layers {
            for cache in [&mut session.keys, &mut session.values] {
                let larger = self.take(capacity * hidden);
                if first {
                    cache.push(larger);
                } else {
                    self.launch(2 * session.rows * hidden);
                    let old = std::mem::replace(&mut cache[layer], larger);
                    self.free(old);
                }
            }
        }
        session.capacity = capacity;
    }

    fn attend(&mut self, session: &mut Session, _layer: usize, x: Rows) -> Rows {
        let words = x.rows * self.load.hidden;
        let heads = words / HEAD;
        let query = self.take(words);
        self.launch(2 * words);
        self.launch(2 * words);
        self.launch(2 * words);
        session.rows += x.rows;
        let pooled = self.take(heads);
        self.launch(words);
        self.free(query);
        let tokens = session.rows / session.batch;
        let scores = self.take(heads * tokens);
        self.launch(heads * tokens);
        self.free(pooled);
        let sums = self.take(heads);
        self.launch(heads * tokens);
        self.free(scores);
        let y = self.take(words);
        self.launch(2 * words);
        self.free(sums);
        Rows { tensor: y, rows: x.rows }
    }

    fn feed_forward(&mut self, x: Rows) -> Rows {
        let words = x.rows * self.load.hidden;
        let wide = self.take(words * WIDE);
        self.launch(words * (WIDE + 1));
        let y = self.take(words);
        self.launch(words * (WIDE + 2));
        self.free(wide);
        Rows { tensor: y, rows: x.rows }
    }

    fn take(&mut self, words: u64) -> Tensor {
        self.take_on(words, false)
    }

    fn take_on(&mut self, words: u64, upload: bool) -> Tensor {
        let tensor = self.vacant.pop().unwrap_or_else(|| {
            self.tensors += 1;
            self.tensors - 1
        });
        self.ops.push(Op::Take { tensor, bytes: words * WORD, upload });
        tensor
    }

    fn free(&mut self, tensor: Tensor) {
        self.ops.push(Op::Free(tensor));
        self.vacant.push(tensor);
    }

    fn launch(&mut self, words: u64) {
        self.ops.push(Op::Launch { bytes: words * WORD, upload: false });
    }
}
