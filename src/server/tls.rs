//! TLS on a connection: its handshake is made by the task that serves it, in the time and the slot that a
//! connection without a request has.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// A connection over TLS.
pub(super) enum TlsConnection {
    Handshake(Accept<TcpStream>),
    Open(TlsStream<TcpStream>),
    Failed,
}

impl TlsConnection {
    pub(super) fn new(stream: TcpStream, config: Arc<ServerConfig>) -> Self {
        Self::Handshake(TlsAcceptor::from(config).accept(stream))
    }

    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Pin<&mut TlsStream<TcpStream>>>> {
        if let Self::Handshake(handshake) = self {
            match ready!(Pin::new(handshake).poll(cx)) {
                Ok(stream) => *self = Self::Open(stream),
                Err(error) => {
                    *self = Self::Failed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match self {
            Self::Open(stream) => Ok(Pin::new(stream)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?.poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(cx))?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            // Nothing was written yet.
            Self::Handshake(_) | Self::Failed => Poll::Ready(Ok(())),
            Self::Open(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            // There is no connection to end in order: it is dropped.
            Self::Handshake(_) | Self::Failed => Poll::Ready(Ok(())),
            Self::Open(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio_rustls::TlsConnector;

    use super::super::listener::Listener;
    use super::*;

    fn certificate() -> (Arc<ServerConfig>, CertificateDer<'static>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        (Arc::new(config), certificate.der().clone())
    }

    /// Each connection has the certificate that is current when it comes.
    #[tokio::test]
    async fn a_new_certificate_is_shown_from_the_next_connection_on() {
        let ((first, first_root), (second, second_root)) = (certificate(), certificate());
        let (current, shown) = watch::channel(first);
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = port.local_addr().unwrap();
        let listener = Listener::Tls(port, shown);
        tokio::spawn(async move {
            loop {
                let mut stream = listener.accept().await.unwrap().stream;
                // A client that does not trust it hangs up.
                drop(stream.write_all(b"hello").await);
                drop(stream.shutdown().await);
            }
        });
        let read = async |root: &CertificateDer<'static>| {
            let mut roots = RootCertStore::empty();
            roots.add(root.clone()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let stream = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok::<_, io::Error>(text)
        };
        assert_eq!(read(&first_root).await.unwrap(), "hello");
        assert!(read(&second_root).await.is_err());
        current.send_replace(second);
        assert_eq!(read(&second_root).await.unwrap(), "hello");
        assert!(read(&first_root).await.is_err());
    }
}
