// Counts the beats that fill two blocks in turn. A block is read from `valid` to `pop`, and may be overwritten at `done`.
module lk_blocks #(
  parameter SIZE = 8,
  parameter BITS = 3
) (
  input wire clk,
  input wire rst,
  input wire push,
  output wire ready,
  output reg [BITS-1:0] place,
  output reg half_in,
  output wire valid,
  input wire pop,
  output reg half_out,
  input wire done
);
  localparam [31:0] LAST = SIZE - 1;
  reg [1:0] free;
  reg [1:0] full;
  wire filled = push & (place == LAST[BITS-1:0]);
  assign ready = free != 0;
  assign valid = full != 0;
  always @(posedge clk) begin
    if (rst) begin
      place <= 0;
      half_in <= 1'b0;
      half_out <= 1'b0;
      free <= 2'd2;
      full <= 2'd0;
    end else begin
      if (push) place <= filled ? {BITS{1'b0}} : place + 1'b1;
      half_in <= half_in ^ filled;
      half_out <= half_out ^ pop;
      if (filled & ~done) free <= free - 1'b1;
      if (done & ~filled) free <= free + 1'b1;
      if (filled & ~pop) full <= full + 1'b1;
      if (pop & ~filled) full <= full - 1'b1;
    end
  end
endmodule
