//! TLS on a connection: its handshake is made by the task that serves it, in the time and the slot that a
//! connection without a request has.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use super::certificate::CurrentTls;
use super::client_certificate::ClientCertificate;

/// A connection over TLS.
pub(super) struct TlsConnection {
    state: TlsState,
    tls: CurrentTls,
    /// Where the client's certificate goes at the end of the handshake.
    client: Option<ClientCertificate>,
}

enum TlsState {
    Handshake(Accept<TcpStream>),
    Open(TlsStream<TcpStream>),
    Failed,
}

impl TlsConnection {
    pub(super) fn new(
        stream: TcpStream,
        tls: &CurrentTls,
        client: Option<ClientCertificate>,
    ) -> Self {
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.terms().config));
        Self { state: TlsState::Handshake(acceptor.accept(stream)), tls: tls.clone(), client }
    }

    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Pin<&mut TlsStream<TcpStream>>>> {
        if let TlsState::Handshake(handshake) = &mut self.state {
            match ready!(Pin::new(handshake).poll(cx)) {
                Ok(stream) => {
                    if let (Some(client), Some(chain)) =
                        (&self.client, stream.get_ref().1.peer_certificates())
                    {
                        client.show(chain);
                    }
                    self.state = TlsState::Open(stream);
                }
                Err(error) => {
                    self.state = TlsState::Failed;
                    self.log(&error);
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match &mut self.state {
            TlsState::Open(stream) => Ok(Pin::new(stream)),
            _ => Err(io::ErrorKind::NotConnected.into()),
        })
    }

    /// Logs why a client's certificate is not taken. What else ends a handshake, such as a probe of the port, tells
    /// the operator nothing.
    fn log(&self, error: &io::Error) {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        if let Some(reason @ rustls::Error::InvalidCertificate(_)) = inner {
            self.tls.refuse(reason);
        }
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
        match &mut self.state {
            // Nothing was written yet.
            TlsState::Handshake(_) | TlsState::Failed => Poll::Ready(Ok(())),
            TlsState::Open(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.state {
            // There is no connection to end in order: it is dropped.
            TlsState::Handshake(_) | TlsState::Failed => Poll::Ready(Ok(())),
            TlsState::Open(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsConnector;

    use super::super::certificate::TlsTerms;
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
        let (current, shown) = CurrentTls::fixed(first);
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
        current.send_replace(Arc::new(TlsTerms { config: second, clients: None }));
        assert_eq!(read(&second_root).await.unwrap(), "hello");
        assert!(read(&first_root).await.is_err());
    }
}
