//! A way to Redis that loses one answer.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Its port, and whether the answer is still to be lost: that to the first `take` of the spool's script,
/// with its connection.
pub async fn loses_an_answer(port: u16) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap().port();
    let loses = Arc::new(AtomicBool::new(true));
    let left = Arc::clone(&loses);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::spawn(carry(near, far, Arc::clone(&left)));
        }
    });
    (here, loses)
}

async fn carry(mut near: TcpStream, mut far: TcpStream, loses: Arc<AtomicBool>) {
    let (mut request, mut reply) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut lost = false;
    loop {
        tokio::select! {
            Ok(n @ 1..) = near.read(&mut request) => {
                let takes = request[..n].windows(8).any(|part| part == b"\r\ntake\r\n");
                lost = lost || takes && loses.swap(false, Ordering::Relaxed);
                if far.write_all(&request[..n]).await.is_err() {
                    return;
                }
            }
            Ok(n @ 1..) = far.read(&mut reply) => {
                if lost || near.write_all(&reply[..n]).await.is_err() {
                    return;
                }
            }
            else => return,
        }
    }
}
