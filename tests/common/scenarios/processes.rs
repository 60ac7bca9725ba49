//! Two processes: a test starts its own executable again, and the two talk in lines.
//!
//! The one that shares memory is the child. Its parent opens the memory, because a process may
//! fetch the file descriptors of its children wherever that is possible at all.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Set in the environment of a child to the part that it plays, and the test that it belongs to.
const PART: &str = "PLUGALLOC_SCENARIO_PART";

/// The longest that a child lives, in which a machine does all that is asked of it many times.
const LIFE: Duration = Duration::from_secs(120);

/// The part that this process plays in a test; `None` where it is the one that started it.
pub(crate) fn part_in(test: &str) -> Option<String> {
    let told = std::env::var(PART).ok()?;
    let (part, of) = told.split_once(' ')?;
    (of == test).then(|| part.to_owned())
}

/// What a child says to its parent.
pub(crate) fn say(mark: &str, rest: &str) {
    println!("\n{mark} {rest}");
    std::io::stdout().flush().unwrap();
}

/// Waits for a word of the parent.
#[track_caller]
pub(crate) fn hear(word: &str) {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    assert_eq!(line.trim(), word, "what the parent said");
}

/// Ends this process, as a failure, if it lives too long.
pub(crate) fn limit_life() {
    std::thread::spawn(|| {
        std::thread::sleep(LIFE);
        eprintln!("this child has lived for {LIFE:?}, and ends");
        std::process::exit(3);
    });
}

/// A child, as its parent sees it.
pub(crate) struct Other {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    heard: String,
}

impl Other {
    /// Starts a test of this executable once more, in this part.
    pub(crate) fn start(test: &str, part: &str) -> Other {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command.env(PART, format!("{part} {test}")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        Other { child, input, output: BufReader::new(output), heard: String::new() }
    }

    /// The next line that begins so, without that.
    #[track_caller]
    pub(crate) fn line(&mut self, mark: &str) -> String {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).unwrap() == 0 {
                let status = self.child.wait().unwrap();
                panic!("the other process ended ({status}) before {mark}:\n{}", self.heard);
            }
            self.heard.push_str(&line);
            if let Some(rest) = line.strip_prefix(mark) {
                return rest.trim().to_owned();
            }
        }
    }

    pub(crate) fn tell(&mut self, word: &str) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{word}").unwrap();
    }

    /// Waits until it ends, as a test that has passed.
    #[track_caller]
    pub(crate) fn end(mut self) {
        drop(self.input.take());
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            self.heard.push_str(&line);
            line.clear();
        }
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the other process ({status}):\n{}", self.heard);
    }

    /// Ends it at once, whatever it does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It has ended already, unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
