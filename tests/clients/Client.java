import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/**
 * Sends the requests of a plan over keep-alive. As it does by itself, it asks for HTTP/2 first.
 * A line of the plan: status, method, path, header or -, bytes; separated by tabs. Prints what differs.
 */
public final class Client {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        int number = 0;
        for (String line : Files.readAllLines(Path.of(args[1]))) {
            String[] row = line.split("\t");
            byte[] body = new byte[Integer.parseInt(row[4])];
            Arrays.fill(body, (byte) 'x');
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create("http://" + args[0] + row[2]))
                .method(row[1], BodyPublishers.ofByteArray(body));
            if (!row[3].equals("-")) {
                String[] header = row[3].split(": ", 2);
                request.header(header[0], header[1]);
            }
            try {
                var answer = client.send(request.build(), BodyHandlers.ofString());
                boolean known = answer.body().contains(row[0].equals("200") ? "MsgId" : "urn:tollgate:");
                if (answer.statusCode() != Integer.parseInt(row[0]) || !known) {
                    System.out.println("request " + number + " " + line + " was answered "
                        + answer.statusCode() + " " + answer.body());
                }
            } catch (java.io.IOException error) {
                System.out.println("request " + number + " " + line + " failed: " + error);
            }
            number++;
        }
        System.out.println("sent " + number);
    }
}
