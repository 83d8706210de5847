//! The messages within a gRPC body, counted as they pass: five bytes of prefix, then the message.
//!
//! Depends on nothing. Invariant: nothing is kept but the prefix being read; a body of any size costs a few bytes.

/// Follows a body and finds the messages in it.
#[derive(Debug, Default)]
pub struct FrameScanner {
    prefix: [u8; 5],
    /// Bytes of the prefix that are there.
    have: usize,
    /// Bytes of the message that are still to come.
    left: u64,
}

impl FrameScanner {
    /// Takes the next piece of the body and reports the length of each message that begins in it.
    pub fn feed(&mut self, mut piece: &[u8], mut begins: impl FnMut(u32)) {
        while !piece.is_empty() {
            let skip = usize::try_from(self.left)
                .unwrap_or(usize::MAX)
                .min(piece.len());
            self.left -= skip as u64;
            piece = &piece[skip..];
            let take = (self.prefix.len() - self.have).min(piece.len());
            self.prefix[self.have..self.have + take].copy_from_slice(&piece[..take]);
            self.have += take;
            piece = &piece[take..];
            if self.have == self.prefix.len() {
                let [_, length @ ..] = self.prefix;
                let length = u32::from_be_bytes(length);
                begins(length);
                self.left = length.into();
                self.have = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_body_is_cut() {
        let mut body = Vec::new();
        for length in [0_u32, 3, 300, 0, 1] {
            body.push(0);
            body.extend(length.to_be_bytes());
            body.extend(vec![7; length as usize]);
        }
        for size in [1, 2, 3, 5, 7, 64, body.len()] {
            let (mut scanner, mut lengths) = (FrameScanner::default(), Vec::new());
            for piece in body.chunks(size) {
                scanner.feed(piece, |length| lengths.push(length));
            }
            assert_eq!(lengths, [0, 3, 300, 0, 1], "pieces of {size}");
        }
    }
}
