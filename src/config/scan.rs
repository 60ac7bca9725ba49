//! Tokens of a configuration text, with the byte at which each begins.

use crate::error::ConfigError;

/// One token. Whitespace separates words and is otherwise skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// Everything between separators.
    Word(&'a str),
    /// One of `,` `:` `[` `]`.
    Separator(char),
    /// Nothing is left.
    End,
}

impl std::fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Word(word) => write!(f, "found '{word}'"),
            Token::Separator(separator) => write!(f, "found '{separator}'"),
            Token::End => f.write_str("the text ends"),
        }
    }
}

/// A word and where it begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<'a> {
    pub(super) text: &'a str,
    pub(super) position: usize,
}

/// Reads tokens from left to right, and remembers the key being read for error messages.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    position: usize,
    key: &'a str,
}

impl<'a> Scanner<'a> {
    /// At the beginning of `text`.
    pub(super) fn new(text: &'a str) -> Self {
        Scanner { text, position: 0, key: "" }
    }

    /// Names the key at fault in errors from here on.
    pub(super) fn set_key(&mut self, key: &'a str) {
        self.key = key;
    }

    /// The next token and the byte at which it begins, without passing it.
    pub(super) fn peek(&self) -> (Token<'a>, usize) {
        let rest = &self.text[self.position..];
        let token = rest.trim_start();
        let start = self.position + (rest.len() - token.len());
        let Some(first) = token.chars().next() else {
            return (Token::End, self.text.len());
        };
        if is_separator(first) {
            return (Token::Separator(first), start);
        }
        let end = token.find(|c: char| is_separator(c) || c.is_whitespace());
        (Token::Word(&token[..end.unwrap_or(token.len())]), start)
    }

    /// Passes the next token.
    pub(super) fn next(&mut self) -> (Token<'a>, usize) {
        let (token, start) = self.peek();
        self.position = start
            + match token {
                Token::Word(word) => word.len(),
                Token::Separator(separator) => separator.len_utf8(),
                Token::End => 0,
            };
        (token, start)
    }

    /// Passes a word; `expected` says in errors what it should have been.
    pub(super) fn word(&mut self, expected: &str) -> Result<Word<'a>, ConfigError> {
        match self.next() {
            (Token::Word(text), position) => Ok(Word { text, position }),
            (token, position) => Err(self.error(position, token.to_string(), expected)),
        }
    }

    /// Passes the separator, which must come next.
    pub(super) fn separator(&mut self, separator: char) -> Result<(), ConfigError> {
        match self.next() {
            (Token::Separator(found), _) if found == separator => Ok(()),
            (token, position) => {
                Err(self.error(position, token.to_string(), &format!("'{separator}'")))
            }
        }
    }

    /// Passes the separator if it comes next, and says whether it did.
    pub(super) fn skip(&mut self, separator: char) -> bool {
        let comes = self.peek().0 == Token::Separator(separator);
        if comes {
            self.next();
        }
        comes
    }

    /// An error about the current key.
    pub(super) fn error(
        &self,
        position: usize,
        problem: impl Into<String>,
        expected: &str,
    ) -> ConfigError {
        ConfigError {
            key: self.key.to_owned(),
            position,
            problem: problem.into(),
            expected: expected.to_owned(),
        }
    }
}

fn is_separator(c: char) -> bool {
    matches!(c, ',' | ':' | '[' | ']')
}
