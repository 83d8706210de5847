//! The limit: the bytes of the same frames over plain TCP, written from one buffer and read into one.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use parking_lot::Mutex as SyncMutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::Mutex,
};
use transport_core::{
    frame::msgappv2,
    raftpb::{Entry, Message, MessageType},
};

use bytes::{Bytes, BytesMut};

use crate::load::{BATCH_MAX, Carrier, Load};

/// One write, and room for one read.
const CHUNK_BYTES: usize = 256 << 10;
/// An answer: a length and a small message.
const ANSWER_BYTES: usize = 22;

pub struct Tcp {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    load: Load,
    frame_bytes: AtomicUsize,
    /// As many frames as a batch has.
    frames: SyncMutex<Bytes>,
    there: Mutex<Option<OwnedWriteHalf>>,
}

impl Shared {
    async fn send(&self, messages: u64) -> io::Result<()> {
        let frames = self.frames.lock().clone();
        let bytes = &frames[..messages as usize * self.frame_bytes.load(SeqCst)];
        let mut there = self.there.lock().await;
        let there = there.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        for chunk in bytes.chunks(CHUNK_BYTES) {
            there.write_all(chunk).await?;
        }
        Ok(())
    }

    /// Counts what arrives and answers it in a round trip.
    async fn receive(&self, mut from: TcpStream, mut back: TcpStream) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut over = 0;
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            let frame = self.frame_bytes.load(SeqCst);
            let messages = (over + read) / frame;
            over = (over + read) % frame;
            if messages == 0 {
                continue;
            }
            self.load.arrived(messages as u64);
            if self.load.is_round_trip.load(SeqCst) {
                back.write_all(&[0; ANSWER_BYTES]).await?;
            }
        }
    }

    /// Sends the next message of a round trip.
    async fn turn(&self, mut answers: TcpStream) -> io::Result<()> {
        let mut buffer = [0; ANSWER_BYTES];
        loop {
            answers.read_exact(&mut buffer).await?;
            if self.load.answered() {
                self.send(1).await?;
            }
        }
    }
}

impl Tcp {
    pub async fn start() -> io::Result<Tcp> {
        let (there, from) = connected().await?;
        let (back, answers) = connected().await?;
        let shared = Arc::<Shared>::default();
        let (_, there) = there.into_split();
        *shared.there.lock().await = Some(there);
        let receiver = Arc::clone(&shared);
        tokio::spawn(async move { receiver.receive(from, back).await });
        let sender = Arc::clone(&shared);
        tokio::spawn(async move { sender.turn(answers).await });
        Ok(Tcp { shared })
    }
}

async fn connected() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let near = TcpStream::connect(listener.local_addr()?).await?;
    let (far, _) = listener.accept().await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}

impl Carrier for Tcp {
    fn load(&self) -> &Load {
        &self.shared.load
    }

    fn prepare(&self, size: usize) {
        let mut frame = BytesMut::new();
        let mut encoder = msgappv2::Encoder::new();
        for index in 0..2 {
            // The second one is compact.
            frame.clear();
            let append = Message {
                msg_type: MessageType::Append as i32,
                term: 1,
                log_term: 1,
                index: 1_000_000 + index,
                commit: 1_000_000 + index,
                entries: vec![Entry {
                    term: 1,
                    index: 1_000_001 + index,
                    data: vec![0; size].into(),
                    ..Entry::default()
                }],
                ..Message::default()
            };
            if let Err(error) = encoder.encode(&append, &mut frame) {
                panic!("an append cannot be encoded: {error}");
            }
        }
        self.shared.frame_bytes.store(frame.len(), SeqCst);
        *self.shared.frames.lock() = frame.repeat(BATCH_MAX as usize).into();
    }

    async fn send(&self, messages: u64) {
        if let Err(error) = self.shared.send(messages).await {
            panic!("the connection broke: {error}");
        }
    }

    fn own_allocations(&self, _: u64, _: u64) -> u64 {
        0
    }
}
