// Posts a file's bytes, and prints the answer's status and length: `java Post.java URL CONTENT_TYPE FILE`.
//
// Like most programs in Java it leaves the version of HTTP to its client, which then asks for HTTP/2 beside the body.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;
import java.time.Duration;

class Post {
    public static void main(String[] arguments) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .timeout(Duration.ofSeconds(60))
                .header("Content-Type", arguments[1])
                .POST(HttpRequest.BodyPublishers.ofFile(Path.of(arguments[2])))
                .build();
        HttpResponse<byte[]> response = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofByteArray());
        System.out.println(response.statusCode() + " " + response.body().length);
    }
}
