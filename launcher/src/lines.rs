//! Lines of bounded length out of a child's output, whatever bytes it writes.

use std::io::{BufRead, BufReader, Read};

/// The longest line that is kept whole, in bytes; of a longer one the rest is left out, and the line says so.
pub(crate) const MAX_LINE: usize = 16 * 1024;

/// An iterator over the lines of `pipe`, without their line ends. It ends with the pipe, or at an error reading it.
pub(crate) struct Lines<P> {
    pipe: BufReader<P>,
}

impl<P: Read> Lines<P> {
    pub(crate) fn new(pipe: P) -> Self {
        Self { pipe: BufReader::new(pipe) }
    }

    /// Reads up to the next line end into `line`, at most [`MAX_LINE`] bytes of it. Returns how many bytes were left out,
    /// or `None` at the end of the pipe.
    fn read(&mut self, line: &mut Vec<u8>) -> Option<usize> {
        let mut any = false;
        let mut left_out = 0;
        loop {
            let available = match self.pipe.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => &[],
            };
            if available.is_empty() {
                return any.then_some(left_out);
            }
            any = true;
            let end = available.iter().position(|byte| *byte == b'\n');
            let piece = &available[..end.unwrap_or(available.len())];
            let kept = piece.len().min(MAX_LINE - line.len());
            line.extend_from_slice(&piece[..kept]);
            left_out += piece.len() - kept;
            let consumed = piece.len() + usize::from(end.is_some());
            self.pipe.consume(consumed);
            if end.is_some() {
                return Some(left_out);
            }
        }
    }
}

impl<P: Read> Iterator for Lines<P> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let left_out = self.read(&mut line)?;
        let mut text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line)).into_owned();
        if left_out > 0 {
            text.push_str(&format!(" … ({left_out} more bytes)"));
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expect: &[&str]) {
        assert_eq!(Lines::new(bytes).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn splits() {
        check(b"", &[]);
        check(b"a\nb", &["a", "b"]);
        check(b"a\r\n\nb\n", &["a", "", "b"]);
        check(b"\xffx\n", &["\u{fffd}x"]);
    }

    #[test]
    fn bounds_a_line() {
        let mut bytes = vec![b'x'; 3 * MAX_LINE + 5];
        bytes.extend_from_slice(b"\nnext\n");
        let lines: Vec<_> = Lines::new(&bytes[..]).collect();
        assert_eq!(lines[0], format!("{} … ({} more bytes)", "x".repeat(MAX_LINE), 2 * MAX_LINE + 5));
        assert_eq!(lines[1], "next");
    }
}
